// Keys, their help, and the theme.
const THEMES = ["auto", "light", "dark"];

function setTheme(theme) {
  if (theme === "auto") delete document.documentElement.dataset.theme;
  else document.documentElement.dataset.theme = theme;
}

// A page in a file may not be allowed to keep anything.
function kept(name, value) {
  try {
    if (value !== undefined) localStorage.setItem(name, value);
    return localStorage.getItem(name);
  } catch {
    return null;
  }
}

function showControls(browser) {
  let theme = THEMES.includes(kept("theme")) ? kept("theme") : "auto";
  setTheme(theme);
  const toggle = element("button", { onclick: () => nextTheme() });
  const name = () => {
    toggle.textContent = { auto: "◐ auto", light: "○ light", dark: "● dark" }[theme];
    toggle.setAttribute("aria-label", `Theme: ${theme}`);
  };
  function nextTheme() {
    theme = THEMES[(THEMES.indexOf(theme) + 1) % THEMES.length];
    kept("theme", theme);
    setTheme(theme);
    name();
  }
  name();

  const actions = [
    ["j k", "next, previous question", { j: () => browser?.move(1), k: () => browser?.move(-1) }],
    ["l h", "next, previous rollout",
      { l: () => browser?.moveRollout(1), h: () => browser?.moveRollout(-1) }],
    ["] [", "next, previous step",
      { "]": () => browser?.moveStep(1), "[": () => browser?.moveStep(-1) }],
    ["s", "rollouts side by side, or one at a time", { s: () => browser?.toggleTogether() }],
    ["b", "the same question beside it: other run, or first or last step",
      { b: () => browser?.toggleBeside() }],
    ["/", "find in questions and texts", { "/": () => browser?.find() }],
    ["r", "reset filters and search", { r: () => browser?.clear() }],
    ["t", "theme: auto, light, dark", { t: () => nextTheme() }],
    ["?", "this help", { "?": () => (help.open ? help.close() : help.showModal()) }],
  ];
  const help = element(
    "dialog",
    { "aria-label": "Keys" },
    element("h2", {}, "Keys"),
    element(
      "dl",
      {},
      ...actions.flatMap(([keys, what]) => [
        element("dt", {}, ...keys.split(" ").map((one) => element("kbd", {}, one))),
        element("dd", {}, what),
      ]),
    ),
    element("button", { onclick: () => help.close() }, "Close"),
  );
  document.body.append(help);
  document.getElementById("controls").append(
    toggle,
    element("button", { "aria-label": "Keys", onclick: () => help.showModal() }, "? keys"),
  );

  const byKey = Object.assign({}, ...actions.map(([, , keys]) => keys));
  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    const { target } = event;
    if (target.matches?.("input, select, textarea")) {
      if (event.key === "Escape") target.blur();
      return;
    }
    if (help.open && event.key !== "?") return;
    const act = byKey[event.key];
    if (!act) return;
    event.preventDefault();
    act();
  });
}
