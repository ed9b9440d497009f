// Whoever writes into the field below a choice means that choice.
"use strict";
(() => {
  const form = document.getElementById("rollout-form");
  if (!form) return;
  form.addEventListener("input", (event) => {
    const choice = event.target.closest(".detail") && event.target.closest(".choice");
    if (choice) choice.querySelector("input[type=radio]").checked = true;
  }, true);
})();
