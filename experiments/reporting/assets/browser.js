// The browser of trajectories: filters and search, the list of questions, rollouts side by side.
const LISTED = 60; // questions that are added to the list at once
const SEARCH_DELAY = 150; // milliseconds after the last key
const NARROW = 820; // pixels
const REWARDS = {
  "any reward": null,
  "mixed groups": (rewards) => new Set(rewards).size > 1,
  "all solved": (rewards) => rewards.length > 0 && rewards.every((reward) => reward >= 1),
  "none solved": (rewards) => rewards.length > 0 && rewards.every((reward) => reward < 1),
  "some solved": (rewards) => rewards.some((reward) => reward >= 1),
  "some partly": (rewards) => rewards.some((reward) => reward > 0 && reward < 1),
  "some not scored": (rewards, rows) => rewards.length < rows.length,
};
const ALL = "all";

function option(value, text) {
  return element("option", { value }, text);
}

function showTrajectories(store) {
  const section = document.getElementById("reader");
  const { steps, groups } = store;
  if (!steps.length) {
    section.append(element("p", { class: "quiet" }, "This run wrote no trajectories."));
    return null;
  }
  // step: index or ALL; group: the open one, null if none is listed; chosen: id of the question
  // last clicked; together: whether rollouts stand side by side; beside: another group or null.
  const now = {
    step: steps.length - 1, group: null, rollout: 0, chosen: null, together: true, beside: null,
    words: "", inTexts: null, listed: [], drawn: 0,
  };

  // ---- filters -------------------------------------------------------------------------------
  const filters = {
    Reward: { every: "any reward", values: Object.keys(REWARDS).slice(1) },
    Status: { every: "any status", values: store.valuesOf((g) => g.rows.map((row) => row[3])) },
    Tool: { every: "any tool", values: store.valuesOf((g) => g.rows.flatMap((row) => row[5])) },
    Mistake: {
      every: "any or no mistake",
      values: store.valuesOf((g) => g.rows.flatMap((row) => row[4])),
    },
    Source: { every: "any source", values: store.valuesOf((g) => g.source) },
  };
  const selects = Object.entries(filters).map(([name, filter]) => {
    filter.select = element(
      "select",
      { "aria-label": name, onchange: () => refresh() },
      option("", filter.every),
      ...filter.values.map((value) => option(value, visible(value))),
    );
    return filter.values.length > (name === "Reward" ? 0 : 1) ? filter.select : null;
  });
  const wanted = (name) => filters[name].select.value;

  // Which rollouts of a group fit the filters that are about rollouts.
  function fits(row) {
    const [, , , status, mistakes, tools] = row;
    return (!wanted("Status") || status === wanted("Status"))
      && (!wanted("Tool") || tools.includes(wanted("Tool")))
      && (!wanted("Mistake") || mistakes.includes(wanted("Mistake")));
  }

  function matches(group) {
    if (now.step !== ALL && group.step !== now.step) return false;
    if (wanted("Source") && group.source !== wanted("Source")) return false;
    const rewards = group.rows.map(([reward]) => reward).filter((reward) => reward !== null);
    const test = REWARDS[wanted("Reward")];
    if (test && !test(rewards, group.rows)) return false;
    if (!group.rows.some(fits)) return false;
    const told = () => `${group.id} ${group.question}`.toLowerCase();
    return !now.words || told().includes(now.words) || Boolean(now.inTexts?.has(group.index));
  }

  // ---- controls ------------------------------------------------------------------------------
  const select = element(
    "select",
    { "aria-label": "Step", onchange: () => openStep(select.value) },
    option(ALL, "All steps"),
    ...steps.map((summary, index) => {
      const mean = summary.mean === null ? "" : ` · reward ${shown(summary.mean)}`;
      const none = summary.texts ? "" : " · rewards only";
      return option(index, `${store.nameOf(index)}${mean}${none}`);
    }),
  );
  const jump = (by) => () => {
    const from = now.step === ALL ? (now.group?.step ?? 0) : now.step;
    openStep(Math.min(steps.length - 1, Math.max(0, from + by)));
  };
  const before = element("button", { "aria-label": "Previous step", onclick: jump(-1) }, "←");
  const after = element("button", { "aria-label": "Next step", onclick: jump(1) }, "→");
  const search = element("input", {
    type: "search",
    placeholder: "Find in questions and texts",
    "aria-label": "Find",
    oninput: () => find(search.value.toLowerCase().trim()),
  });
  const reset = element("button", { onclick: () => clear() }, "Reset");
  const count = element("span", { role: "status" });
  const key = element(
    "span",
    { class: "key" },
    rewardSquare("i", 1, "key"), "solved",
    rewardSquare("i", 0, "key"), "not solved",
    rewardSquare("i", null, "key"), "not scored",
  );
  const list = element("div", { class: "questions card", onscroll: () => drawMore() });
  const detail = element("div", { class: "detail card" });
  section.append(
    element("div", { class: "bar" }, before, select, after, search),
    element("div", { class: "bar filters" }, ...selects, reset),
    element("div", { class: "bar quiet-bar" }, count, key),
    element("div", { class: "browser" }, list, detail),
  );

  function clear() {
    for (const filter of Object.values(filters)) filter.select.value = "";
    search.value = "";
    find("");
  }

  // ---- search --------------------------------------------------------------------------------
  let searching = 0;
  function find(words) {
    now.words = words;
    now.inTexts = null;
    const mine = ++searching;
    refresh();
    if (words) setTimeout(() => mine === searching && findInTexts(words, mine), SEARCH_DELAY);
  }

  async function findInTexts(words, mine) {
    const found = new Set();
    const wantedSteps = now.step === ALL ? steps.map((_, index) => index) : [now.step];
    for (const step of wantedSteps) {
      const texts = await store.textsOf(step);
      if (mine !== searching) return;
      for (const group of groups) {
        const rollouts = group.step === step ? texts[group.place] : null;
        if (rollouts && holds(rollouts, words)) found.add(group.index);
      }
    }
    now.inTexts = found;
    refresh();
  }

  function holds(value, words) {
    if (typeof value === "string") return value.toLowerCase().includes(words);
    if (value === null || typeof value !== "object") return false;
    return Object.values(value).some((inner) => holds(inner, words));
  }

  // ---- the list ------------------------------------------------------------------------------
  function drawList() {
    now.listed = groups.filter(matches);
    now.drawn = 0;
    const all = now.step === ALL ? groups.length : steps[now.step].questions;
    const looking = now.words && !now.inTexts ? " · looking in the texts …" : "";
    count.textContent =
      `${now.listed.length.toLocaleString("en")} of ${plural(all, "question")}${looking}`;
    list.replaceChildren();
    const some = now.step === ALL ? groups.length : steps[now.step].groups.length;
    const empty = some ? "No question fits." : "This step's groups are not on this page.";
    if (!now.listed.length) list.append(element("p", { class: "quiet" }, empty));
    drawMore();
  }

  // Draws what can be seen of the list, and a screen more.
  function drawMore() {
    const near = () => list.scrollTop + 2 * (list.clientHeight || 600) > list.scrollHeight;
    while (now.drawn < now.listed.length && (now.drawn === 0 || near())) {
      const more = now.listed.slice(now.drawn, now.drawn + LISTED);
      list.append(...more.map(questionButton));
      now.drawn += more.length;
    }
  }

  function questionButton(group) {
    const squares = group.rows.map((row, i) =>
      rewardSquare("i", row[0], `rollout ${i}`, { class: fits(row) ? "" : "dim" }));
    const button = element(
      "button",
      {
        class: "question",
        "aria-pressed": String(group === now.group),
        onclick: () => choose(group, 0, true),
      },
      element("span", {}, visible(group.question || group.id)),
      now.step === ALL ? element("small", {}, store.nameOf(group.step)) : null,
      element("div", { class: "squares" }, ...squares),
    );
    button.group = group;
    return button;
  }

  function mark() {
    let place = now.listed.indexOf(now.group);
    while (now.drawn <= place) {
      const more = now.listed.slice(now.drawn, now.drawn + LISTED);
      list.append(...more.map(questionButton));
      now.drawn += more.length;
    }
    for (const button of list.querySelectorAll(".question")) {
      button.setAttribute("aria-pressed", String(button.group === now.group));
    }
    const open = list.querySelector('[aria-pressed="true"]');
    if (!open || window.innerWidth <= NARROW) return;
    const [top, bottom] = [open.offsetTop, open.offsetTop + open.offsetHeight];
    if (top < list.scrollTop) list.scrollTop = top - 8;
    if (bottom > list.scrollTop + list.clientHeight) list.scrollTop = bottom - list.clientHeight + 8;
  }

  // ---- the open question ---------------------------------------------------------------------
  let drawing = 0;
  async function drawDetail() {
    const mine = ++drawing;
    const { group, beside } = now;
    if (group === null) {
      detail.replaceChildren(element("p", { class: "quiet" }, "No question is open."));
      return;
    }
    const [rollouts, others] = await Promise.all([
      store.rolloutsOf(group), beside ? store.rolloutsOf(beside) : null,
    ]);
    if (mine !== drawing) return;
    detail.replaceChildren(
      ...headOf(group, rollouts),
      ...(rollouts ? columns(rollouts, others) : [missing()]),
    );
    scrollToRollout();
  }

  function missing() {
    return element(
      "p",
      { class: "quiet" },
      "Only the rewards of this group are on this page. ",
      "Its texts are in the run's trajectories/ folder.",
    );
  }

  function headOf(group, rollouts) {
    const question = rollouts?.[0]?.question || group.question || group.id;
    const gold = rollouts?.[0]?.gold ?? "";
    return [
      element(
        "div",
        { class: "detail-top" },
        element("span", { class: "quiet" }, store.nameOf(group.step)),
        chip(group.id),
        chip(group.source),
        element(
          "span",
          { class: "space" },
          element("button", { "aria-label": "Previous question", onclick: () => move(-1) }, "↑"),
          element("button", { "aria-label": "Next question", onclick: () => move(1) }, "↓"),
        ),
      ),
      element("h3", {}, visible(question)),
      gold === "" ? null : element("p", { class: "gold" }, element("span", {}, "Gold"), visible(gold)),
      element("div", { class: "bar tools" }, ...picker(group, rollouts), besideSelect(group)),
    ].filter((node) => node !== null);
  }

  function picker(group, rollouts) {
    if (!rollouts || rollouts.length < 2) return [];
    const buttons = rollouts.map((one, index) => {
      const button = rewardSquare("button", group.rows[index][0], `rollout ${one.rollout}`, {
        "aria-pressed": String(index === now.rollout),
        onclick: () => pick(index),
        class: fits(group.rows[index]) ? "" : "dim",
      });
      button.textContent = one.rollout;
      return button;
    });
    const mode = element(
      "button",
      { "aria-pressed": String(now.together), onclick: () => toggleTogether() },
      now.together ? "One at a time" : "Side by side",
    );
    return [element("div", { class: "picker" }, ...buttons), mode];
  }

  // The same question at other steps and in other runs.
  function besideSelect(group) {
    const others = store.alike(group).filter((other) => other !== group);
    if (!others.length) return null;
    const choice = element(
      "select",
      {
        "aria-label": "Beside it",
        onchange: () => {
          now.beside = choice.value === "" ? null : groups[Number(choice.value)];
          drawDetail();
        },
      },
      option("", "beside it: nothing"),
      ...others.map((other) => option(other.index, `beside it: ${store.nameOf(other.step)}`)),
    );
    choice.value = now.beside ? String(now.beside.index) : "";
    return choice;
  }

  function columns(rollouts, others) {
    const several = rollouts.length > 1 || Boolean(others);
    const own = now.together ? rollouts : [rollouts[now.rollout]];
    const rows = 1 + Math.max(...[...own, ...(others ?? [])].map((one) => one.turns.length));
    const one = (group, prefix) => (trajectory) => {
      const mine = group === "own";
      const place = mine ? rollouts.indexOf(trajectory) : -1;
      return columnOf(trajectory, {
        rows,
        group,
        title: [prefix, `Rollout ${trajectory.rollout}`].filter(Boolean).join(" · "),
        trained: !steps[(mine ? now.group : now.beside).step].heldout,
        active: several && place === now.rollout,
        onTitle: () => (mine && rollouts.length > 1 ? pick(place, !now.together) : null),
      });
    };
    const shownColumns = own.map(one("own", others ? store.nameOf(now.group.step) : ""));
    if (others) shownColumns.push(...others.map(one("other", store.nameOf(now.beside.step))));
    const heat = [...own, ...(others ?? [])].some((t) => t.turns.some((turn) => turn.tokens));
    return [
      ...(heat ? [element("p", { class: "legend-line" }, shades())] : []),
      element("div", { class: "columns" }, ...shownColumns),
    ];
  }

  function scrollToRollout() {
    const open = detail.querySelector('.column[aria-current="true"]');
    const place = detail.querySelector(".columns");
    if (!open || !place) return;
    const [left, right] = [open.offsetLeft, open.offsetLeft + open.offsetWidth];
    if (left < place.scrollLeft || right > place.scrollLeft + place.clientWidth) {
      place.scrollLeft = left - place.offsetLeft;
    }
  }

  // ---- moving --------------------------------------------------------------------------------
  function open(group, rollout) {
    const same = group && now.group && group.id === now.group.id;
    now.group = group;
    now.rollout = group && rollout < group.rows.length ? rollout : 0;
    if (!same || now.beside === group) now.beside = null;
    mark();
    remember();
    return drawDetail();
  }

  function choose(group, rollout, scroll) {
    now.chosen = group.id;
    open(group, rollout);
    if (scroll && window.innerWidth <= NARROW) detail.scrollIntoView({ block: "start" });
  }

  function pick(rollout, together = now.together) {
    now.rollout = rollout;
    now.together = together;
    remember();
    drawDetail();
  }

  function toggleTogether() {
    pick(now.rollout, !now.together);
  }

  // Opens the first of the named questions that is listed, else the top of the list.
  function openListed(...names) {
    const places = names.map((name) => now.listed.find((group) => group.id === name));
    const group = places.find((one) => one !== undefined) ?? now.listed[0] ?? null;
    const same = group && now.group && group.id === now.group.id;
    open(group, same ? now.rollout : 0);
  }

  function refresh() {
    const openNow = now.group;
    drawList();
    const other = now.listed.some((group) => group.id === now.chosen) && openNow?.id !== now.chosen;
    if (!other && now.listed.includes(openNow)) open(openNow, now.rollout);
    else openListed(now.chosen, openNow?.id);
  }

  function openStep(step) {
    now.step = step === ALL ? ALL : Number(step);
    select.value = now.step;
    before.disabled = now.step === 0;
    after.disabled = now.step === steps.length - 1;
    list.scrollTop = 0;
    if (now.words) {
      find(now.words);
      return;
    }
    const openNow = now.group?.id;
    drawList();
    openListed(openNow, now.chosen);
  }

  function move(by) {
    const place = now.listed.indexOf(now.group);
    const group = now.listed[Math.min(now.listed.length - 1, Math.max(0, place + by))];
    if (group && group !== now.group) choose(group, 0, false);
  }

  function moveRollout(by) {
    const count = now.group?.rows.length ?? 0;
    const rollout = now.rollout + by;
    if (rollout >= 0 && rollout < count) pick(rollout);
  }

  // Puts the same question beside it: of the other run, else of the step furthest away.
  function toggleBeside() {
    if (!now.group) return;
    const others = store.alike(now.group).filter((other) => other !== now.group);
    const own = steps[now.group.step];
    const distance = ({ step }) =>
      (steps[step].run === own.run ? 0 : 1e9) + Math.abs(steps[step].step - own.step);
    others.sort((a, b) => distance(b) - distance(a));
    now.beside = now.beside ? null : (others[0] ?? null);
    drawDetail();
  }

  // The address says what is open, so that it can be sent to somebody and survives a reload.
  function remember() {
    if (!now.group) return;
    const { step, place } = now.group;
    history.replaceState(null, "", `#${store.keyOf(step)}/${place}/${now.rollout}`);
  }

  function recall() {
    const [key, place, rollout] = decodeURIComponent(location.hash.slice(1)).split("/");
    const step = store.byKey.get(key);
    openStep(step ?? steps.length - 1);
    now.chosen = now.group?.id ?? null;
    const group = groups.find((one) => one.step === step && one.place === Number(place));
    if (group?.rows[Number(rollout)]) choose(group, Number(rollout), false);
  }

  function openQuestion(key, id) {
    const step = store.byKey.get(key);
    if (step === undefined) return;
    for (const filter of Object.values(filters)) filter.select.value = "";
    now.words = search.value = "";
    openStep(step);
    const group = now.listed.find((one) => visible(one.id) === id);
    if (group) choose(group, 0, false);
    section.scrollIntoView();
  }

  now.together = window.innerWidth > NARROW;
  recall();
  return {
    move, moveRollout, moveStep: (by) => jump(by)(), toggleTogether, toggleBeside, clear,
    openQuestion,
    find: () => search.focus(),
    openNearest(wantedStep) {
      const distance = ({ step, heldout }) => 2 * Math.abs(step - wantedStep) + (heldout ? 1 : 0);
      const places = steps.map((_, index) => index);
      openStep(places.reduce((a, b) => (distance(steps[b]) < distance(steps[a]) ? b : a)));
      section.scrollIntoView();
    },
  };
}
