// Keeps the page fresh: fetches it again and swaps the part that changes. Without scripts a meta refresh does.
"use strict";
const PERIOD_MS = 4000;
async function refresh() {
  if (!document.hidden) {
    try {
      const reply = await fetch(location.href, { credentials: "same-origin" });
      if (reply.redirected) { location.href = reply.url; return; }
      const page = new DOMParser().parseFromString(await reply.text(), "text/html");
      const fresh = page.getElementById("live"), old = document.getElementById("live");
      if (reply.ok && fresh && fresh.innerHTML !== old.innerHTML) old.replaceWith(document.adoptNode(fresh));
      document.body.classList.remove("lost");
    } catch {
      document.body.classList.add("lost");
    }
  }
  setTimeout(refresh, PERIOD_MS);
}
setTimeout(refresh, PERIOD_MS);
