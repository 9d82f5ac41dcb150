// What the page holds: steps of runs with their groups, and texts that are unpacked when asked for.
const KEPT_STEPS = 64;
const MOST_VALUES = 200; // of a filter

async function data(name) {
  const block = document.getElementById(`data-${name}`);
  if (!block) return null;
  const packed = atob(block.textContent);
  const bytes = new Uint8Array(packed.length);
  for (let i = 0; i < packed.length; i++) bytes[i] = packed.charCodeAt(i);
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
  return JSON.parse(await new Response(stream).text());
}

function makeStore(steps, runs) {
  const texts = new Map();
  const groups = [];
  const places = new Map();
  steps.forEach((summary, step) => {
    summary.groups.forEach(([id, question, source, rows], place) => {
      const group = { index: groups.length, step, place, id, question, source, rows };
      groups.push(group);
      if (!places.has(id)) places.set(id, []);
      places.get(id).push(group);
    });
  });

  // Resolves to the rollouts of a group; undefined where its texts are not on the page.
  async function rolloutsOf(group) {
    return (await textsOf(group.step))[group.place];
  }

  function textsOf(step) {
    const found = texts.get(step) ?? data(`texts-${step}`).then((value) => value || []);
    texts.delete(step);
    texts.set(step, found);
    if (texts.size > KEPT_STEPS) texts.delete(texts.keys().next().value);
    return found;
  }

  function nameOf(step) {
    const summary = steps[step];
    const run = runs.length > 1 ? `${visible(runs[summary.run])} · ` : "";
    if (summary.name) return visible(summary.name);
    if (!summary.heldout) return `${run}Step ${summary.step}`;
    return run + (summary.step ? `Held-out after step ${summary.step}` : "Held-out before training");
  }

  // The address of a step, the same when more steps have come.
  const keyOf = (step) => {
    const { run, name, heldout, step: number } = steps[step];
    return `${run}.${name ? `p${step}` : `${heldout ? "h" : "t"}${number}`}`;
  };
  const byKey = new Map(steps.map((_, step) => [keyOf(step), step]));

  // Every distinct value of the rollouts' or the groups' facts, for the filters.
  function valuesOf(read) {
    return [...new Set(groups.flatMap(read))].filter((value) => value !== "").sort()
      .slice(0, MOST_VALUES);
  }

  return {
    steps, runs, groups, rolloutsOf, textsOf, nameOf, keyOf, byKey, valuesOf,
    alike: (group) => places.get(group.id),
  };
}
