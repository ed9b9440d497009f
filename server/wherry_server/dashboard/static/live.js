// Keeps `#live` fresh: the server says what changed (server-sent events), the page is fetched again at most once
// a second and morphed into place, so focus, selection and open parts stay. A hidden tab asks for nothing.
"use strict";
(() => {
  const first = document.getElementById("live");
  if (!first || !(first.dataset.watch || first.dataset.idle) || !window.EventSource || !window.Idiomorph) return;
  const GAP = 1000, IDLE = 10000;
  const status = document.getElementById("link");
  let source = null, opened = "", timer = 0, due = Infinity, last = 0, cost = 0, running = null;

  function say(lost) {
    if (!status) return;
    status.hidden = false;
    const words = lost ? "connecting again …" : "live";
    status.classList.toggle("lost", lost);
    if (status.textContent !== words) status.textContent = words;
  }
  // Parts that scripts made (`data-keep`) stay as they are; so does what the reader opened.
  const callbacks = {
    beforeNodeMorphed: (old) => !(old.nodeType === 1 && old.hasAttribute("data-keep")),
    beforeAttributeUpdated: (name, node) => !(name === "open" && node.nodeName === "DETAILS"),
  };
  async function refresh() {
    timer = 0; due = Infinity;
    const address = location.href, began = performance.now(), abort = new AbortController();
    running = abort;
    try {
      const reply = await fetch(address, { credentials: "same-origin", signal: abort.signal, headers: { "HX-Request": "true" } });
      if (reply.status === 401) { location.assign("/login"); return; }
      const fresh = new DOMParser().parseFromString(await reply.text(), "text/html").getElementById("live");
      if (reply.ok && fresh && address === location.href && !abort.signal.aborted) {
        const old = document.getElementById("live");
        window.Idiomorph.morph(old, fresh, { morphStyle: "outerHTML", ignoreActiveValue: true, callbacks });
        document.dispatchEvent(new Event("wherry:fresh"));
      }
    } catch { /* the stream tells when the server is away */ }
    running = null;
    last = performance.now();
    cost = last - began;
  }
  // A slow server is asked less often: a refresh may take a tenth of the time.
  function plan(wait) {
    const at = Math.max(performance.now() + wait, last + Math.max(GAP, 10 * cost));
    if (at >= due) return;
    due = at;
    clearTimeout(timer);
    timer = setTimeout(refresh, Math.max(0, at - performance.now()));
  }
  // `data-watch`: what the page shows, fetched again at once; `data-idle`: what it sums up, fetched again in a while.
  const keys = (name) => document.getElementById("live").dataset[name].split(" ").filter(Boolean);
  const address = () => "/live?" + new URLSearchParams([...keys("watch"), ...keys("idle")].map((key) => ["watch", key]));
  function open() {
    opened = address();
    source = new EventSource(opened);
    let before = false;
    source.addEventListener("open", () => { say(false); if (before || last) plan(0); before = true; });
    source.addEventListener("error", () => {
      say(true);
      // A refusal (a session that is over, a server that restarts behind a proxy) ends an EventSource for good.
      if (source && source.readyState === EventSource.CLOSED) { close(); setTimeout(() => { if (!source && !document.hidden) open(); }, 10000); plan(10000); }
    });
    source.addEventListener("change", (event) => {
      const watched = keys("watch");
      plan(JSON.parse(event.data).some((key) => watched.includes(key)) ? 0 : IDLE);
    });
  }
  function close() {
    if (source) source.close();
    source = null;
  }
  // The page shows something else now: watch that.
  function follow() {
    if (source && address() !== opened) { close(); open(); }
  }
  document.addEventListener("htmx:afterSettle", follow);
  document.addEventListener("wherry:fresh", follow);
  document.addEventListener("visibilitychange", () => {
    if (document.hidden) { close(); clearTimeout(timer); due = Infinity; } else if (!source) { open(); plan(0); }
  });
  // What the reader asked for goes first.
  document.addEventListener("htmx:beforeRequest", () => { if (running) running.abort(); });
  window.addEventListener("pagehide", close);
  window.addEventListener("pageshow", (event) => { if (event.persisted && !source) { open(); plan(0); } });
  open();
})();
