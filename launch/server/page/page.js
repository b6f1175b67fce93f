// The page: asks for videos, shows the one that was chosen, the others, and the cluster.

import { Refused, events, get, key, post, send } from "./api.js";
import { Player } from "./player.js";

const $ = (id) => document.getElementById(id);
const PERIOD = 2000; // milliseconds between two looks at queue and cluster
const PAGE = 20;

const state = { models: [], chosen: null, watching: null, shown: PAGE, following: null };
const player = new Player($("player"));

// --- words ---------------------------------------------------------------------------------------

function say(id, text) {
  $(id).textContent = text ?? "";
  $(id).hidden = !text;
}

function clock(seconds) {
  const whole = Math.max(0, Math.round(seconds));
  const minutes = Math.floor(whole / 60);
  return `${minutes}:${String(whole % 60).padStart(2, "0")}`;
}

function described(video) {
  const words = {
    queued: video.faults ? "waits for workers, then goes on" : "waits for workers",
    in_progress: `${video.stage}, ${video.frames} of ${video.total_frames} frames`,
    cancelling: "is being cancelled",
    cancelled: "cancelled",
    completed: `${video.seconds} s, ${video.size}`,
    failed: video.error?.message ?? "failed",
  }[video.status];
  const left = video.status === "in_progress" && video.seconds_left !== null;
  const rest = left ? `, ${clock(video.seconds_left)} left` : "";
  const faults = video.faults ? `; workers lost and replaced ${video.faults}×` : "";
  return words + rest + faults;
}

function element(name, text, attributes = {}) {
  const made = document.createElement(name);
  if (text !== undefined) made.textContent = text;
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  return made;
}

// --- the key -------------------------------------------------------------------------------------

function wantKey(why) {
  say("key-error", key.get() ? why : "");
  $("key").value = "";
  if (!$("key-dialog").open) $("key-dialog").showModal();
}

$("change-key").addEventListener("click", () => wantKey(""));
$("key-dialog").addEventListener("close", () => {
  if ($("key-dialog").returnValue !== "use") return;
  key.set($("key").value.trim());
  start();
});

// Shows what went wrong where it belongs; a missing key is asked for.
function failed(error, id) {
  if (error.name === "AbortError") return;
  if (error instanceof Refused && error.status === 401) wantKey(error.message);
  else if (id) say(id, error.message);
}

// --- asking --------------------------------------------------------------------------------------

function addCue() {
  const row = element("li");
  const at = element("label", "From second ");
  at.append(element("input", undefined, { type: "number", min: "0", step: "any", required: "" }));
  const text = element("label", "Prompt ");
  text.append(element("input", undefined, { required: "", maxlength: "4000" }));
  const remove = element("button", "×", { type: "button", "aria-label": "Remove this prompt", class: "quiet" });
  remove.addEventListener("click", () => {
    row.remove();
    $("add-cue").focus();
  });
  row.append(at, text, remove);
  $("timeline").append(row);
  at.firstElementChild.focus();
}

function asked() {
  const form = new FormData($("ask"));
  const prompt = form.get("prompt").trim();
  const later = [...$("timeline").children].map((row) => {
    const [at, text] = row.querySelectorAll("input");
    return { at: Number(at.value), text: text.value };
  });
  const fields = later.length ? { prompts: [{ at: 0, text: prompt }, ...later] } : { prompt };
  for (const name of ["model", "size", "strategy"]) {
    if (form.get(name)) fields[name] = form.get(name).trim();
  }
  for (const name of ["seconds", "seed", "steps", "guidance"]) {
    if (form.get(name)) fields[name] = Number(form.get(name));
  }
  return fields;
}

async function make(fields) {
  const form = new FormData($("ask"));
  if (form.get("interactive")) fields.priority = "interactive";
  const file = form.get("input_reference");
  if (!file?.size) return post("v1/videos", fields);
  const body = new FormData();
  for (const [name, value] of Object.entries(fields)) {
    body.set(name, typeof value === "object" ? JSON.stringify(value) : value);
  }
  body.set("input_reference", file);
  return (await send("v1/videos", { method: "POST", body })).json();
}

$("add-cue").addEventListener("click", addCue);
$("ask").addEventListener("submit", async (event) => {
  event.preventDefault();
  say("ask-error", "");
  event.submitter?.setAttribute("disabled", "");
  try {
    const video = await make(asked());
    choose(video);
    $("watch").scrollIntoView({ block: "nearest" });
  } catch (error) {
    failed(error, "ask-error");
  } finally {
    event.submitter?.removeAttribute("disabled");
  }
});
$("prompt").addEventListener("keydown", (event) => {
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) $("ask").requestSubmit();
});

$("show-plan").addEventListener("click", async () => {
  if (!$("ask").reportValidity()) return;
  say("ask-error", "");
  $("show-plan").disabled = true;
  try {
    const fields = asked();
    const own = state.models.find(({ id }) => id === fields.model)?.strategy;
    showPlans(await post("v1/plans", { strategy: own, ...fields })); // not those of other strategies
  } catch (error) {
    failed(error, "ask-error");
  } finally {
    $("show-plan").disabled = false;
  }
});

function degrees(plan) {
  const shared = Object.entries(plan.degrees ?? {}).filter(([, degree]) => degree > 1);
  return shared.map(([axis, degree]) => `${axis} ${degree}`).join(", ") || "one worker";
}

function showPlans(told) {
  const plans = (told.plans ?? []).slice(0, 5);
  const columns = [
    ["Strategy", (plan) => plan.strategy],
    ["Workers", (plan) => plan.workers],
    ["Shared by", degrees],
    ["Takes", (plan) => (plan.seconds < 60 ? `${plan.seconds.toFixed(1)} s` : clock(plan.seconds))],
    ["First frame", (plan) => `${plan.first_frame_seconds.toFixed(1)} s`],
    ["Result", (plan) => plan.label],
  ];
  const head = element("tr");
  head.append(...columns.map(([name]) => element("th", name)));
  const rows = plans.map((plan) => {
    const row = element("tr");
    row.append(...columns.map(([, cell]) => element("td", String(cell(plan) ?? ""))));
    return row;
  });
  $("plan-table").replaceChildren(head, ...rows);
  $("plan-words").textContent = plans.length
    ? `On ${told.cluster}, the best first; ${told.fitting} plans fit.`
    : `No plan is possible: ${told.rejected?.[0]?.told ?? "nothing fits"}`;
  $("plan").hidden = false;
}

// --- watching ------------------------------------------------------------------------------------

function choose(video) {
  state.chosen = video.id;
  state.watching = null;
  state.following?.abort();
  player.stop();
  say("watch-error", "");
  $("switched").textContent = "";
  $("watch").hidden = false;
  show(video);
  follow(video.id);
  look();
}

function show(video) {
  if (video.id !== state.chosen) return;
  const open = ["queued", "in_progress"].includes(video.status);
  $("watch-title").textContent = video.prompts.map((cue) => cue.text).join(" → ");
  $("progress").value = video.progress;
  $("stage").textContent = described(video);
  $("switch").hidden = !open;
  $("cancel").hidden = !open;
  $("download").hidden = video.status !== "completed";
  $("delete").hidden = open || video.status === "cancelling";
  play(video);
}

// Starts to play once there is something to play.
async function play(video) {
  const path = `v1/videos/${video.id}/content`;
  const there = { in_progress: "growing", completed: "whole" }[video.status];
  if (!there || state.watching === video.id) return;
  state.watching = video.id;
  try {
    if (there === "whole") {
      await player.showWhole(path);
    } else if (!(await player.showGrowing(path)) && state.chosen === video.id) {
      say("watch-error", "This browser can't play a video in the making; it is shown when it is done.");
      state.watching = null; // when it is whole
    }
  } catch (error) {
    if (state.chosen === video.id) failed(error, "watch-error");
  }
}

async function follow(id) {
  const leaving = new AbortController();
  state.following = leaving;
  while (!leaving.signal.aborted) {
    try {
      for await (const { kind, data } of events(`v1/videos/${id}/events`, leaving.signal)) {
        if (kind !== "video") continue;
        show(data);
        if (["completed", "cancelled", "failed"].includes(data.status)) return;
      }
    } catch (error) {
      if (error instanceof Refused) return failed(error, "watch-error");
    }
    await new Promise((resolve) => setTimeout(resolve, PERIOD)); // the connection broke
  }
}

$("switch").addEventListener("submit", async (event) => {
  event.preventDefault();
  try {
    const told = await post(`v1/videos/${state.chosen}/prompt`, { prompt: $("next-prompt").value });
    const from = told.from_second;
    $("switched").textContent =
      from === null ? "From the next block on." : `From second ${from.toFixed(1)} on.`;
    $("next-prompt").value = "";
    say("watch-error", "");
  } catch (error) {
    failed(error, "watch-error");
  }
});

$("cancel").addEventListener("click", async () => {
  try {
    show(await post(`v1/videos/${state.chosen}/cancel`));
  } catch (error) {
    failed(error, "watch-error");
  }
});

$("delete").addEventListener("click", async () => {
  try {
    await send(`v1/videos/${state.chosen}`, { method: "DELETE" });
    player.stop();
    state.chosen = null;
    $("watch").hidden = true;
    look();
  } catch (error) {
    failed(error, "watch-error");
  }
});

$("download").addEventListener("click", async () => {
  try {
    const path = `v1/videos/${state.chosen}/content`;
    const link = element("a", "", { download: `${state.chosen}.mp4` });
    link.href = key.get() ? URL.createObjectURL(await (await send(path)).blob()) : path;
    link.click();
  } catch (error) {
    failed(error, "watch-error");
  }
});

// --- queue, cluster, health ----------------------------------------------------------------------

function queueRow(video) {
  const row = element("li");
  const button = element("button", undefined, { type: "button", "aria-current": video.id === state.chosen });
  button.dataset.id = video.id;
  const percent = video.status === "in_progress" ? ` ${video.progress} %` : "";
  button.append(
    element("span", video.prompt, { class: "words" }),
    element("span", video.status.replace("_", " ") + percent, { class: `state ${video.status}` }),
  );
  button.addEventListener("click", () => choose(video));
  row.append(button);
  return row;
}

function showQueue({ data, has_more: more }) {
  const held = document.activeElement?.dataset?.id; // rows are made anew; the focus stays
  $("queue").replaceChildren(...data.map(queueRow));
  if (held) $("queue").querySelector(`[data-id="${held}"]`)?.focus();
  $("older").hidden = !more || state.shown >= 100;
  const open = data.filter((video) => ["queued", "in_progress"].includes(video.status)).length;
  $("queue-words").textContent = data.length ? `${open} on their way` : "None yet.";
}

function showCluster({ devices, lost, queued }) {
  const rows = devices.map((device) => {
    const row = element("tr");
    const video = device.video ? device.video.slice(6, 14) : device.busy ? "another's" : "";
    const rank = device.rank ? ` (rank ${device.rank})` : "";
    const does = device.busy ? `${device.stage ?? "works"}${rank}` : "free";
    for (const text of [`${device.node} ${device.name}`, does, video, `${device.memory_gib.toFixed(0)} GiB`]) {
      row.append(element("td", text));
    }
    return row;
  });
  $("cluster").tBodies[0].replaceChildren(...rows);
  say("lost", lost.length ? `Lost: ${lost.join(", ")}` : "");
  $("cluster-title").textContent = queued ? `Cluster, ${queued} waiting` : "Cluster";
}

async function showHealth() {
  const reply = await fetch("health", key.get() ? { headers: { Authorization: `Bearer ${key.get()}` } } : {});
  const { status, problems } = await reply.json();
  $("health").textContent = status === "ok" ? "All workers are well" : problems.join("; ") || "Not well";
  $("health").className = status === "ok" ? "ok" : "bad";
}

async function look() {
  try {
    const [queue, cluster] = await Promise.all([
      get(`v1/videos?limit=${state.shown}`),
      get("v1/cluster"),
      showHealth(),
    ]);
    showQueue(queue);
    showCluster(cluster);
  } catch (error) {
    if (error instanceof Refused) return failed(error, null);
    $("health").textContent = "The server does not answer";
    $("health").className = "bad";
  }
}

$("older").addEventListener("click", () => {
  state.shown = Math.min(100, state.shown + PAGE);
  look();
});

// --- the beginning -------------------------------------------------------------------------------

function modelChosen() {
  const model = state.models.find(({ id }) => id === $("model").value);
  if (!model) return;
  $("seconds").placeholder = model.seconds;
  $("ask").elements.size.placeholder = model.size;
  $("grammar").hidden = model.grammar === null;
}

async function start() {
  try {
    state.models = (await get("v1/models")).data;
    $("model").replaceChildren(...state.models.map(({ id }) => element("option", id)));
    modelChosen();
    await look();
  } catch (error) {
    failed(error, "ask-error");
  }
}

$("model").addEventListener("change", modelChosen);
setInterval(() => {
  if (!document.hidden && !$("key-dialog").open) look();
}, PERIOD);
start();
