// Before the first paint: the theme that was chosen here, if one was; else the system's holds.
"use strict";
(() => {
  const root = document.documentElement;
  let chosen = null;
  try { chosen = localStorage.getItem("wherry-theme"); } catch { /* storage is off: the system's theme holds */ }
  if (chosen === "light" || chosen === "dark") root.dataset.theme = chosen;
  root.classList.add("scripts");
})();
