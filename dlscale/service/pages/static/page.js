"use strict";
// Keeps the part of a page that changes up to date. Everything works without it, by loading the page again.
(() => {
  const part = document.getElementById("part");

  const refresh = async () => {
    const url = new URL(location.href);
    url.searchParams.set("part", "1");
    const answer = await fetch(url, { headers: { Accept: "text/html" } });
    if (!answer.ok) return;
    const focused = document.activeElement && part.contains(document.activeElement) ? document.activeElement.getAttribute("href") : null;
    const open = part.querySelector("details[open]");
    const log = part.querySelector("#log");
    const scrolled = log ? { top: log.scrollTop, end: log.scrollHeight - log.scrollTop - log.clientHeight < 30 } : null;
    if (open) return; // somebody is about to press a button
    part.innerHTML = await answer.text();
    if (focused) part.querySelector(`a[href="${CSS.escape(focused)}"]`)?.focus();
    const fresh = part.querySelector("#log");
    if (fresh && scrolled) fresh.scrollTop = scrolled.end ? fresh.scrollHeight : scrolled.top;
  };

  // At most once a second, and once more after the last call.
  let waiting = false;
  const soon = () => {
    if (waiting) return;
    waiting = true;
    setTimeout(() => { waiting = false; refresh(); }, 1000);
  };

  if (part?.dataset.live) new EventSource(part.dataset.live).addEventListener("changed", soon);

  if (part?.dataset.events) {
    const source = new EventSource(part.dataset.events);
    for (const word of ["state", "pass_started", "blocks", "pass_finished", "epoch", "warning", "checkpoint"]) source.addEventListener(word, soon);
    source.addEventListener("end", () => { source.close(); soon(); });
  }
  const log = part?.querySelector("#log");
  if (log) log.scrollTop = log.scrollHeight;

  const form = document.getElementById("new");
  if (form) {
    let timer;
    form.spec.addEventListener("input", () => {
      clearTimeout(timer);
      timer = setTimeout(async () => {
        const body = new URLSearchParams(new FormData(form));
        body.set("do", "validate");
        const answer = await fetch("/new?part=1", { method: "POST", body, headers: { Accept: "text/html" } });
        part.innerHTML = await answer.text();
      }, 400);
    });
  }

  for (const select of document.querySelectorAll(".filters select")) select.addEventListener("change", () => select.form.requestSubmit());

  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || /^(INPUT|TEXTAREA|SELECT)$/.test(event.target.tagName)) return;
    const links = [...document.querySelectorAll(".jobs tbody th a:first-of-type")];
    const at = links.indexOf(document.activeElement);
    if (event.key === "j") links[Math.min(at + 1, links.length - 1)]?.focus();
    else if (event.key === "k") links[Math.max(at - 1, 0)]?.focus();
    else if (event.key === "/" && document.getElementById("name")) { event.preventDefault(); document.getElementById("name").focus(); }
    else if (event.key === "n") location.href = "/new";
  });
})();
