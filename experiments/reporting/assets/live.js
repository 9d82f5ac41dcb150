// A page that a server makes follows the run: it asks what is new, and shows it.
const ASK_EVERY = 2000; // milliseconds

function follow(state) {
  const pill = element("button", { class: "live", onclick: () => location.reload() });
  document.getElementById("controls").prepend(pill);
  const say = (text, kind) => {
    pill.textContent = text;
    pill.className = `live ${kind}`;
  };
  say(state.label, "on");
  // Somebody who reads further down is not disturbed.
  const reading = () => window.scrollY > 300;
  async function ask() {
    try {
      const answer = await fetch("state", { cache: "no-store" });
      if (!answer.ok) throw new Error(String(answer.status));
      const found = await answer.json();
      if (found.version === state.version) say(found.label, "on");
      else if (reading()) say(`${found.label} · show`, "new");
      else location.reload();
    } catch {
      say("the server has ended", "off");
    }
    setTimeout(ask, ASK_EVERY);
  }
  setTimeout(ask, ASK_EVERY);
}

const ready = (async () => {
  if (!("DecompressionStream" in window)) {
    const told = "Curves and trajectories need a browser of 2024 or newer.";
    document.getElementById("reader").append(element("p", { class: "note" }, told));
    return;
  }
  const [charts, steps, runs, live] = await Promise.all(
    ["charts", "steps", "runs", "live"].map(data),
  );
  const browser = showTrajectories(makeStore(steps, runs));
  showCharts(charts, (step) => browser?.openNearest(step));
  for (const button of document.querySelectorAll("button[data-question]")) {
    button.onclick = () => browser?.openQuestion(button.dataset.step, button.dataset.question);
  }
  showControls(browser);
  if (live) follow(live);
})();
