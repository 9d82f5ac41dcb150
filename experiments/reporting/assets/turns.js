// One trajectory as a column: how it ended, then every turn.
const LEVELS = [0.9, 0.5, 0.2, 0.05]; // probabilities; a token below the last has the deepest shade

function rewardSquare(tag, reward, label, options = {}) {
  const kind = reward === null ? "none" : reward >= 1 ? "full" : reward > 0 ? "part" : "zero";
  const told = reward === null ? "not scored" : `reward ${shown(reward)}`;
  const { class: more = "", ...rest } = options;
  return element(tag, { class: `square ${kind} ${more}`, title: `${label}: ${told}`, ...rest });
}

function chip(text, kind = "") {
  return text === "" ? null : element("span", { class: `chip ${kind}` }, visible(text));
}

function part(title, text, options = {}) {
  if (text === "") return [];
  return [element("p", { class: "part-title" }, title), element("pre", options, visible(text))];
}

function folded(title, ...children) {
  const kept = children.flat();
  return kept.length ? [element("details", {}, element("summary", {}, title), ...kept)] : [];
}

// The planner's text; tokens that were not nearly certain are shaded by their probability.
function plannerText(turn, advantage) {
  const side = advantage > 0 ? "raised" : advantage < 0 ? "lowered" : "";
  const box = element("pre", { class: `planner ${side}` });
  if (!turn.tokens) {
    box.append(visible(turn.planner_text || "(nothing)"));
    return box;
  }
  const letters = Array.from(turn.planner_text);
  let at = 0, plain = "";
  for (const [count, logprob] of turn.tokens) {
    const text = letters.slice(at, at + count).join("");
    at += count;
    const probability = Math.exp(logprob);
    const level = LEVELS.filter((bound) => probability < bound).length;
    if (!level) {
      plain += text;
      continue;
    }
    box.append(visible(plain));
    plain = "";
    const title = `probability ${shown(probability)}, log-prob ${shown(logprob)}`;
    box.append(element("span", { class: `token p${level}`, title }, visible(text)));
  }
  box.append(visible(plain));
  return box;
}

function turnCard(turn, index, trajectory) {
  const own = typeof turn.advantage === "number" ? turn.advantage : null;
  const advantage = own ?? trajectory.advantage;
  const branch = trajectory.branch;
  const mean = turn.logprob_sum !== null && turn.response_tokens
    ? turn.logprob_sum / turn.response_tokens : null;
  const facts = [
    chip(turn.mistake || (turn.tool_error ? "error" : ""), "bad"),
    own === null ? null : chip(`advantage ${signed(own)}`, own > 0 ? "good" : own < 0 ? "bad" : ""),
    turn.response_tokens === null ? null : chip(plural(turn.response_tokens, "token")),
    mean === null ? null : chip(`log-prob ${shown(mean)} a token`),
    turn.prompt_tokens === null ? null : chip(`prompt ${turn.prompt_tokens.toLocaleString("en")}`),
    turn.seconds === null ? null : chip(`${shown(turn.seconds)} s`),
    branch && index < branch.turn - 1 ? chip(`taken from rollout ${branch.parent}`) : null,
    branch && index === branch.turn - 1 ? chip("drawn anew") : null,
  ];
  const stops = turn.verdict === "STOP";
  return element(
    "div",
    { class: turn.tool_error ? "turn error" : "turn" },
    element("h4", {}, element("i", {}, String(index + 1)), visible(turn.tool || "no tool")),
    element("p", { class: "part-title" }, "Planner"),
    plannerText(turn, advantage),
    ...folded("As it was read", part("Context", turn.context), part("Sub-goal", turn.sub_goal)),
    ...part("Command", turn.command),
    ...part(turn.tool_error ? "Result: error" : "Result", turn.result, { class: "result" }),
    turn.verdict.length <= 24
      ? element("p", { class: "part-title verdict-line" }, "Verdict",
          chip(turn.verdict || "none asked", stops ? "good" : ""))
      : null,
    ...(turn.verdict.length > 24 ? part("Verdict", turn.verdict) : []),
    element("div", { class: "chips" }, ...facts),
  );
}

// rows: of the grid that columns beside each other share.
function columnOf(trajectory, { title, rows, onTitle, active, group, trained }) {
  const { reward } = trajectory;
  const advantage = trained ? trajectory.advantage : null;
  const kind = reward === null ? "" : reward >= 1 ? "good" : "bad";
  const facts = [
    chip(reward === null ? "not scored" : `reward ${shown(reward)}`, kind),
    chip(trajectory.reward_source ? `by ${trajectory.reward_source}` : ""),
    advantage === null ? null
      : chip(`advantage ${signed(advantage)}`, advantage > 0 ? "good" : advantage < 0 ? "bad" : ""),
    chip(trajectory.status === "ok" ? "" : trajectory.status, "bad"),
    chip(trajectory.stop ? `stop: ${trajectory.stop}` : ""),
    trajectory.seconds === null ? null : chip(`${shown(trajectory.seconds)} s`),
  ];
  const square = rewardSquare("i", reward, title);
  const head = element(
    "div",
    { class: "column-head" },
    element("button", { class: "column-title", onclick: onTitle }, square, visible(title)),
    element("p", { class: "answer" }, visible(trajectory.answer || "(no answer)")),
    element("div", { class: "chips" }, ...facts),
    trajectory.error ? element("p", { class: "error-text" }, visible(trajectory.error)) : null,
    ...folded("Query analysis", part("", trajectory.analysis).slice(1)),
  );
  const column = element(
    "div",
    { class: `column ${group}`, "aria-current": active ? "true" : "false" },
    head,
    ...trajectory.turns.map((turn, index) => turnCard(turn, index, { ...trajectory, advantage })),
  );
  column.style.gridRow = `span ${rows}`;
  return column;
}

function shades() {
  const words = ["≥ 0.9", "≥ 0.5", "≥ 0.2", "≥ 0.05", "less"];
  return element(
    "span",
    { class: "key" },
    "probability of a token",
    ...words.map((word, level) => element("span", { class: `token p${level}` }, word)),
  );
}
