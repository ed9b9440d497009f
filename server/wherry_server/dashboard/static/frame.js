// What every page has: the theme button, keys, and forms that leave empty fields out of the address.
"use strict";
(() => {
  const root = document.documentElement;
  const button = document.getElementById("theme");
  const order = ["system", "light", "dark"];
  const current = () => root.dataset.theme || "system";

  function showTheme() {
    if (!button) return;
    button.hidden = false;
    button.querySelector("[data-theme-name]").textContent = current();
  }
  function nextTheme() {
    const next = order[(order.indexOf(current()) + 1) % order.length];
    if (next === "system") delete root.dataset.theme; else root.dataset.theme = next;
    try { localStorage.setItem("wherry-theme", next); } catch { /* remembered for this page only */ }
    showTheme();
    document.dispatchEvent(new Event("wherry:theme"));
  }
  if (button) button.addEventListener("click", nextTheme);
  showTheme();

  // -- keys
  const dialog = document.getElementById("keys");
  const places = { f: "/", m: "/models", r: "/releases", o: "/rollouts", a: "/audit" };
  let going = 0;
  const typing = (target) => target.closest("input, select, textarea, [contenteditable]");
  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || typing(event.target) || (dialog && dialog.open)) return;
    if (event.timeStamp - going < 1500 && places[event.key]) {
      going = 0;
      location.assign(places[event.key]);
    } else if (event.key === "g") {
      going = event.timeStamp;
    } else if (event.key === "t") {
      nextTheme();
    } else if (event.key === "?" && dialog) {
      dialog.showModal();
    } else if (event.key === "/") {
      const search = document.querySelector("[data-search]");
      if (!search) return;
      event.preventDefault();
      search.focus();
      search.select();
    }
  });
  const opener = document.getElementById("show-keys");
  if (opener && dialog) {
    opener.hidden = false;
    opener.addEventListener("click", () => dialog.showModal());
  }

  // -- addresses without empty fields
  document.addEventListener("submit", (event) => {
    if (event.target.method !== "get") return;
    for (const field of event.target.elements) if (field.name && !field.value) field.disabled = true;
    setTimeout(() => { for (const field of event.target.elements) field.disabled = false; });
  });
  document.addEventListener("htmx:configRequest", (event) => {
    if (event.detail.verb !== "get") return;
    for (const [name, value] of [...event.detail.formData.entries()]) if (!value) event.detail.formData.delete(name);
  });
})();
