const FILTERS = {
  "all questions": () => true,
  "mixed groups": (rewards) => new Set(rewards).size > 1,
  "all solved": (rewards) => rewards.length > 0 && rewards.every((reward) => reward >= 1),
  "none solved": (rewards) => rewards.length > 0 && rewards.every((reward) => reward < 1),
  "with tool errors": (rewards, rows) => rows.some(([, , errors]) => errors > 0),
};

function rewardSquare(tag, reward, label, options = {}) {
  const kind = reward === null ? "none" : reward >= 1 ? "full" : reward > 0 ? "part" : "zero";
  const told = reward === null ? "not scored" : `reward ${shown(reward)}`;
  return element(tag, { class: `square ${kind}`, title: `${label}: ${told}`, ...options });
}

function stepName(summary) {
  if (summary.name) return visible(summary.name);
  if (!summary.heldout) return `Step ${summary.step}`;
  return summary.step ? `Held-out after step ${summary.step}` : "Held-out before training";
}

function pairs(rows) {
  const kept = rows.filter(([, value]) => value !== "");
  return element(
    "dl",
    { class: "pairs" },
    ...kept.flatMap(([name, value]) => [
      element("dt", {}, name),
      element("dd", {}, visible(value)),
    ]),
  );
}

function part(title, text, options = {}) {
  if (text === "") return [];
  return [element("p", { class: "part-title" }, title), element("pre", options, visible(text))];
}

function folded(title, text) {
  if (text === "") return [];
  return [element("details", {}, element("summary", {}, title), element("pre", {}, visible(text)))];
}

function chip(text, kind = "") {
  return text === "" ? null : element("span", { class: `chip ${kind}` }, visible(text));
}

// Says which turns a branch took from its parent, and which it drew anew.
function originOf(branch, index) {
  if (!branch || index >= branch.turn) return null;
  return chip(index + 1 < branch.turn ? `taken from rollout ${branch.parent}` : "drawn anew");
}

function turnCard(turn, index, origin) {
  const facts = [
    chip(turn.tool_error ? "tool error" : "", "bad"),
    turn.verdict.length <= 24 ? chip(turn.verdict, turn.verdict === "STOP" ? "good" : "") : null,
    turn.response_tokens === null ? null : chip(plural(turn.response_tokens, "token")),
    turn.prompt_tokens === null ? null : chip(`prompt ${turn.prompt_tokens.toLocaleString("en")}`),
    turn.logprob_sum === null ? null : chip(`log-prob ${shown(turn.logprob_sum)}`),
    turn.seconds === null ? null : chip(`${shown(turn.seconds)} s`),
    typeof turn.advantage === "number" ? chip(`advantage ${shown(turn.advantage)}`) : null,
    origin,
  ];
  return element(
    "div",
    { class: turn.tool_error ? "turn error" : "turn" },
    element(
      "div",
      { class: "chips" },
      element("b", {}, `${index + 1} · ${visible(turn.tool || "no tool")}`),
      ...facts,
    ),
    ...part("Sub-goal", turn.sub_goal),
    ...part("Context", turn.context),
    ...part("Command", turn.command),
    ...part(turn.tool_error ? "Result: error" : "Result", turn.result, { class: "result" }),
    ...(turn.verdict.length > 24 ? part("Verdict", turn.verdict) : []),
    ...folded("What the planner wrote", turn.planner_text),
  );
}

function trajectoryView(trajectory) {
  const reward = trajectory.reward;
  const facts = [
    chip(reward === null ? "not scored" : `reward ${shown(reward)}`, reward >= 1 ? "good" : "bad"),
    chip(trajectory.reward_source ? `by ${trajectory.reward_source}` : ""),
    trajectory.advantage === null ? null : chip(`advantage ${shown(trajectory.advantage)}`),
    chip(trajectory.status, trajectory.status === "ok" ? "" : "bad"),
    chip(trajectory.stop ? `stop: ${trajectory.stop}` : ""),
    chip(plural(trajectory.turns.length, "turn")),
    trajectory.seconds === null ? null : chip(`${shown(trajectory.seconds)} s`),
  ];
  return [
    element("div", { class: "chips" }, ...facts),
    pairs([
      ["Answer", trajectory.answer || "(none)"],
      ["Gold", trajectory.gold],
      ["Error", trajectory.error],
    ]),
    ...folded("Query analysis", trajectory.analysis),
    ...trajectory.turns.map((turn, index) =>
      turnCard(turn, index, originOf(trajectory.branch, index))),
  ];
}

function showTrajectories() {
  const section = document.getElementById("reader");
  const steps = data("steps");
  if (!steps.length) {
    section.append(element("p", { class: "quiet" }, "This run wrote no trajectories."));
    return () => {};
  }
  const texts = new Map();
  const textsOf = (index) => {
    if (!texts.has(index)) texts.set(index, data(`texts-${index}`) || []);
    return texts.get(index);
  };
  // question: index in this step, null if none is listed; open: its name; chosen: the name of the
  // one last clicked.
  const now = {
    step: 0, question: null, rollout: 0, open: null, chosen: null,
    filter: "all questions", words: "",
  };

  const choose = () => openStep(Number(select.value));
  const select = element("select", { "aria-label": "Step", onchange: choose });
  steps.forEach((summary, index) => {
    const mean = summary.mean === null ? "" : ` · reward ${shown(summary.mean)}`;
    const none = summary.texts ? "" : " · rewards only";
    select.append(element("option", { value: index }, `${stepName(summary)}${mean}${none}`));
  });
  const jump = (by) => () => openStep(Math.min(steps.length - 1, Math.max(0, now.step + by)));
  const before = element("button", { "aria-label": "Previous step", onclick: jump(-1) }, "←");
  const after = element("button", { "aria-label": "Next step", onclick: jump(1) }, "→");
  const filter = element(
    "select",
    {
      "aria-label": "Filter",
      onchange: () => { now.filter = filter.value; openListed(now.chosen, now.open); },
    },
    ...Object.keys(FILTERS).map((name) => element("option", {}, name)),
  );
  const search = element("input", {
    type: "search",
    placeholder: "Find in questions",
    "aria-label": "Find in questions",
    oninput: () => {
      now.words = search.value.toLowerCase();
      openListed(now.chosen, now.open);
    },
  });
  const count = element("span");
  const key = element(
    "span",
    { class: "key" },
    rewardSquare("i", 1, "key"), "solved",
    rewardSquare("i", 0, "key"), "not solved",
    rewardSquare("i", null, "key"), "not scored",
  );
  const list = element("div", { class: "questions card" });
  const detail = element("div", { class: "detail card" });
  section.append(
    element("div", { class: "bar" }, before, select, after, filter, search, count, key),
    element("div", { class: "browser" }, list, detail),
  );

  function matches([name, question, rows]) {
    const rewards = rows.map(([reward]) => reward).filter((reward) => reward !== null);
    const words = `${name} ${question}`.toLowerCase();
    return FILTERS[now.filter](rewards, rows) && words.includes(now.words);
  }

  function listed() {
    const groups = steps[now.step].groups;
    return groups.map((_, index) => index).filter((index) => matches(groups[index]));
  }

  function drawList() {
    const groups = steps[now.step].groups;
    const found = listed();
    count.textContent = `${found.length} of ${plural(steps[now.step].questions, "question")}`;
    list.replaceChildren(...found.map((index) => {
      const [name, question, rows] = groups[index];
      const squares = rows.map(([reward], i) => rewardSquare("i", reward, `rollout ${i}`));
      return element(
        "button",
        {
          class: "question",
          "aria-pressed": String(index === now.question),
          onclick: () => chooseQuestion(index, 0, true),
        },
        element("span", {}, visible(question || name)),
        element("div", { class: "squares" }, ...squares),
      );
    }));
    const empty = groups.length ? "No question fits." : "This step's groups are not on this page.";
    if (!found.length) list.append(element("p", { class: "quiet" }, empty));
  }

  function drawDetail() {
    if (now.question === null) {
      detail.replaceChildren(element("p", { class: "quiet" }, "No question is open."));
      return;
    }
    const rollouts = textsOf(now.step)[now.question];
    const group = steps[now.step].groups[now.question];
    if (!rollouts) {
      detail.replaceChildren(
        element("h3", {}, visible(group[1])),
        element(
          "p",
          { class: "quiet" },
          "Only the rewards of this group are on this page. ",
          "Its texts are in the run's trajectories/ folder.",
        ),
      );
      return;
    }
    const trajectory = rollouts[now.rollout];
    const buttons = rollouts.map((one, index) => {
      const button = rewardSquare("button", group[2][index][0], `rollout ${one.rollout}`, {
        "aria-pressed": String(index === now.rollout),
        onclick: () => chooseQuestion(now.question, index, false),
      });
      button.textContent = one.rollout;
      return button;
    });
    detail.replaceChildren(
      element("h3", {}, visible(trajectory.question)),
      ...(rollouts.length > 1 ? [element("div", { class: "picker" }, ...buttons)] : [element("p")]),
      ...trajectoryView(trajectory),
    );
  }

  function openQuestion(question, rollout) {
    now.question = question;
    now.rollout = rollout;
    now.open = question === null ? null : steps[now.step].groups[question][0];
    drawList();
    drawDetail();
    remember();
  }

  function chooseQuestion(question, rollout, scroll) {
    openQuestion(question, rollout);
    now.chosen = now.open;
    if (scroll && window.innerWidth <= 820) detail.scrollIntoView({ block: "start" });
  }

  // Opens the first of the named questions that is listed, else the top of the list.
  function openListed(...names) {
    const groups = steps[now.step].groups;
    const found = listed();
    const places = names.map((name) => found.find((index) => groups[index][0] === name));
    const question = places.find((index) => index !== undefined) ?? found[0] ?? null;
    const same = question !== null && groups[question][0] === now.open;
    openQuestion(question, same && now.rollout < groups[question][2].length ? now.rollout : 0);
  }

  function openStep(index) {
    now.step = index;
    select.value = index;
    before.disabled = index === 0;
    after.disabled = index === steps.length - 1;
    list.scrollTop = 0;
    openListed(now.open, now.chosen);
  }

  // The address says what is open: step file, question and rollout by their places in the lists.
  function remember() {
    const place = now.question === null ? [now.step] : [now.step, now.question, now.rollout];
    history.replaceState(null, "", `#${place.join(".")}`);
  }

  function recall() {
    const [step, question, rollout] = (location.hash.match(/\d+/g) ?? []).map(Number);
    const valid = steps[step]?.groups[question]?.[2][rollout];
    openStep(steps[step] ? step : steps.length - 1);
    now.chosen = now.open;
    if (valid) chooseQuestion(question, rollout, false);
  }

  recall();
  return (wanted) => {
    const distance = ({ step, heldout }) => 2 * Math.abs(step - wanted) + (heldout ? 1 : 0);
    const places = steps.map((_, index) => index);
    openStep(places.reduce((a, b) => (distance(steps[b]) < distance(steps[a]) ? b : a)));
    section.scrollIntoView();
  };
}

showCharts(showTrajectories());
