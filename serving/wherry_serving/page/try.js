// Try a model: forms from its signature, requests in the Open Inference Protocol, answers with latency.
"use strict";
const $ = (id) => document.getElementById(id);
const SHOWN = 2000; // values that a text field and a curl line hold; more are kept aside and sent in binary form
const KEPT = 8;
const HEADER_LENGTH = "Inference-Header-Content-Length";
const ARRAYS = { BOOL: Uint8Array, UINT8: Uint8Array, UINT16: Uint16Array, UINT32: Uint32Array, UINT64: BigUint64Array, INT8: Int8Array,
  INT16: Int16Array, INT32: Int32Array, INT64: BigInt64Array, FP16: Uint16Array, FP32: Float32Array, FP64: Float64Array };
const state = { model: null, inputs: [], last: null, tries: [], stream: null };

function element(tag, options = {}, ...children) {
  const made = Object.assign(document.createElement(tag), options);
  made.append(...children);
  return made;
}
const count = (shape) => shape.reduce((all, size) => all * size, 1);
const number = (value) => (Number.isInteger(value) ? String(value) : Math.abs(value) >= 1e5 || Math.abs(value) < 1e-3 ? value.toExponential(3) : String(Number(value.toPrecision(5))));
const milliseconds = (value) => `${value < 10 ? value.toFixed(1) : Math.round(value)} ms`;

// ---- half floats, which browsers do not have everywhere ----
function fromHalf(bits) {
  const sign = bits & 0x8000 ? -1 : 1, exponent = (bits >> 10) & 31, fraction = bits & 1023;
  if (exponent === 31) return fraction ? NaN : sign * Infinity;
  return sign * (exponent ? 2 ** (exponent - 15) * (1 + fraction / 1024) : 2 ** -14 * (fraction / 1024));
}
function toHalf(value) {
  const sign = value < 0 || Object.is(value, -0) ? 0x8000 : 0, size = Math.abs(value);
  if (Number.isNaN(size)) return 0x7e00;
  if (size >= 65520) return sign | 0x7c00;
  if (size < 2 ** -14) return sign | Math.round(size * 2 ** 24);
  const exponent = Math.min(15, Math.floor(Math.log2(size)));
  return sign | (((exponent + 15) << 10) + Math.round((size / 2 ** exponent - 1) * 1024));
}

// ---- tensors to bytes and back ----
function pack(datatype, values) {
  if (datatype === "BYTES") {
    const parts = values.map((value) => new TextEncoder().encode(value));
    const view = new DataView(new ArrayBuffer(parts.reduce((all, part) => all + 4 + part.length, 0)));
    let at = 0;
    for (const part of parts) {
      view.setUint32(at, part.length, true);
      new Uint8Array(view.buffer).set(part, at + 4);
      at += 4 + part.length;
    }
    return new Uint8Array(view.buffer);
  }
  const convert = datatype === "FP16" ? toHalf : datatype.endsWith("INT64") ? (value) => BigInt(Math.trunc(value)) : Number;
  return new Uint8Array(ARRAYS[datatype].from(values, convert).buffer);
}
function unpack(datatype, bytes) {
  if (datatype === "BYTES") {
    const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.length), found = [];
    for (let at = 0; at < bytes.length; ) {
      const size = view.getUint32(at, true);
      found.push(new TextDecoder().decode(bytes.subarray(at + 4, at + 4 + size)));
      at += 4 + size;
    }
    return found;
  }
  const array = new ARRAYS[datatype](bytes.slice().buffer); // a copy starts at an aligned byte
  return Array.from(array, datatype === "FP16" ? fromHalf : datatype === "BOOL" ? Boolean : Number);
}
function decode(buffer, headerLength) {
  const length = headerLength === null ? buffer.byteLength : Number(headerLength);
  const head = JSON.parse(new TextDecoder().decode(new Uint8Array(buffer, 0, length)));
  let at = length;
  for (const output of head.outputs || []) {
    const size = output.parameters && output.parameters.binary_data_size;
    if (size === undefined) output.data = output.data.flat(Infinity);
    else {
      output.data = unpack(output.datatype, new Uint8Array(buffer, at, size));
      at += size;
    }
  }
  return head;
}

// ---- requests ----
const path = () => `v2/models/${encodeURIComponent(state.model.name)}/infer`;
const quoted = (text) => `'${text.replaceAll("'", `'\\''`)}'`;

function tensorRequest() {
  const tensors = state.inputs.map((input) => input.read());
  const heads = tensors.map(({ name, datatype, shape }) => ({ name, datatype, shape }));
  const url = new URL(path(), location.href).href;
  const parameters = { labels: true, binary_data_output: true };
  const small = tensors.every((tensor) => tensor.values.length <= SHOWN && tensor.datatype !== "FP16");
  if (small) {
    heads.forEach((head, index) => (head.data = tensors[index].values));
    const shown = JSON.stringify({ inputs: heads, parameters: { labels: true } });
    return { body: JSON.stringify({ inputs: heads, parameters }), headers: { "Content-Type": "application/json" }, what: "tensors", curl: `curl -s ${url} \\\n  -d ${quoted(shown)}` };
  }
  const bytes = tensors.map((tensor) => pack(tensor.datatype, tensor.values));
  heads.forEach((head, index) => (head.parameters = { binary_data_size: bytes[index].length }));
  const head = new TextEncoder().encode(JSON.stringify({ inputs: heads, parameters }));
  const saved = new TextEncoder().encode(JSON.stringify({ inputs: heads, parameters: { labels: true } }));
  return {
    body: new Blob([head, ...bytes]), saved: new Blob([saved, ...bytes]), what: "tensors",
    headers: { "Content-Type": "application/octet-stream", [HEADER_LENGTH]: String(head.length) },
    curl: `curl -s ${url} \\\n  -H '${HEADER_LENGTH}: ${saved.length}' \\\n  --data-binary @request.bin`,
  };
}
function pictureRequest(blob, name, preview) {
  const url = new URL(path(), location.href).href;
  return { body: blob, headers: { "Content-Type": blob.type, Accept: "application/octet-stream" }, what: name, preview,
    curl: `curl -s ${url} \\\n  -H 'Content-Type: ${blob.type}' \\\n  --data-binary @${quoted(name)}` };
}
async function ask(request) {
  const began = performance.now();
  const reply = await fetch(path(), { method: "POST", body: request.body, headers: request.headers });
  const buffer = await reply.arrayBuffer();
  const took = performance.now() - began;
  const head = decode(buffer, reply.headers.get(HEADER_LENGTH));
  if (!reply.ok) throw new Error(head.error || `status ${reply.status}`);
  return { head, took };
}
async function send(request) {
  const tried = { request };
  $("status").textContent = "Waiting for the answer …";
  try {
    Object.assign(tried, await ask(request));
  } catch (error) {
    tried.error = error instanceof TypeError ? "The model server did not answer. Does it still run?" : error.message;
  }
  state.tries = [tried, ...state.tries].slice(0, KEPT);
  show(tried);
}
async function repeat() {
  const { request } = state.last, times = [];
  $("repeat").disabled = true;
  try {
    for (let index = 0; index < 50; index++) {
      times.push((await ask(request)).took);
      $("status").textContent = `${index + 1} of 50 …`;
    }
    times.sort((a, b) => a - b);
    $("status").textContent = `50 times, one after the other: median ${milliseconds(times[25])}, 95 % within ${milliseconds(times[47])}, as this browser measures it.`;
  } catch (error) {
    $("status").textContent = `Stopped after ${times.length}: ${error.message}`;
  }
  $("repeat").disabled = false;
}

// ---- answers ----
function show(tried) {
  state.last = tried;
  const { request, head, error } = tried;
  $("repeat").disabled = Boolean(error);
  $("status").replaceChildren();
  if (error) $("answer").replaceChildren(element("p", { className: "failed" }, error));
  else {
    $("status").append(element("span", { className: "big" }, milliseconds(tried.took)), " from request to answer");
    const labels = (head.parameters && head.parameters.labels) || [];
    const rows = Array.isArray(labels[0]) ? labels.slice(0, 8) : labels.length ? [labels] : [];
    $("answer").replaceChildren(...rows.map(bars), ...head.outputs.map(outputView));
  }
  $("call").hidden = false;
  $("curl").textContent = request.curl;
  $("body-note").hidden = !request.saved;
  if (request.saved) $("body-link").href = URL.createObjectURL(request.saved);
  showTries();
}
function bars(labels) {
  const top = Math.max(...labels.map((item) => Math.abs(item.score)), Number.MIN_VALUE);
  const shares = labels.every((item) => item.score >= 0 && item.score <= 1);
  return element("ol", { className: "bars" }, ...labels.map((item) => {
    const score = shares ? `${(item.score * 100).toFixed(1)} %` : number(item.score);
    const bar = element("span", { className: "bar" });
    bar.style.width = `${100 * Math.max(0, shares ? item.score : item.score / top)}%`;
    return element("li", {}, bar, element("span", {}, item.label), element("span", {}, score));
  }));
}
function outputView(output) {
  const values = output.data, numeric = typeof values[0] === "number";
  const facts = [`${output.datatype} [${output.shape.join(", ")}]`];
  if (numeric && values.length > 1) {
    let low = Infinity, high = -Infinity, sum = 0;
    for (const value of values) { low = Math.min(low, value); high = Math.max(high, value); sum += value; }
    facts.push(`min ${number(low)}`, `mean ${number(sum / values.length)}`, `max ${number(high)}`);
  }
  const shown = values.slice(0, 256).map((value) => (numeric ? number(value) : String(value))).join("  ");
  const rest = values.length > 256 ? `\n… ${(values.length - 256).toLocaleString("en")} more` : "";
  const text = element("pre", { tabIndex: 0 }, shown + rest);
  text.setAttribute("role", "group");
  text.setAttribute("aria-label", `Values of ${output.name}`);
  return element("div", { className: "output" }, element("h3", {}, output.name), element("p", { className: "soft" }, facts.join(" · ")), text);
}
function summary(tried) {
  if (tried.error) return `Refused: ${tried.error}`;
  const labels = (tried.head.parameters && tried.head.parameters.labels) || [];
  const first = Array.isArray(labels[0]) ? labels[0][0] : labels[0];
  if (first) return first.label;
  const output = tried.head.outputs[0];
  return `${output.name}: ${output.data.slice(0, 6).map((value) => (typeof value === "number" ? number(value) : value)).join("  ")}`;
}
function showTries() {
  $("past").hidden = state.tries.length < 2;
  $("tries").replaceChildren(...state.tries.map((tried) => {
    const { preview } = tried.request;
    const thumb = preview ? element("img", { className: "thumb", src: preview, alt: "" }) : element("span", { className: "thumb" }, "[ ]");
    const button = element("button", { type: "button", onclick: () => show(tried) }, thumb,
      element("span", { className: "what" }, summary(tried)), element("span", { className: "soft" }, tried.error ? "–" : milliseconds(tried.took)));
    button.setAttribute("aria-pressed", String(tried === state.last));
    return element("li", {}, button);
  }));
}

// ---- tensor forms ----
function parse(text, spec) {
  let found;
  try {
    found = JSON.parse(text.trim().startsWith("[") ? text : `[${text}]`);
  } catch {
    throw new Error(`Input ${spec.name}: write numbers with commas between them, or JSON`);
  }
  return found.flat(Infinity);
}
function random(spec, size) {
  const whole = /INT(\d+)/.exec(spec.datatype);
  if (spec.datatype === "BYTES") return Array(size).fill("text");
  if (spec.datatype === "BOOL") return Array.from({ length: size }, () => Math.random() < 0.5);
  if (whole) return Array.from({ length: size }, () => Math.floor(Math.random() * (whole[1] === "8" && spec.datatype[0] === "U" ? 256 : 100)));
  return Array.from({ length: size }, () => Number(Math.random().toFixed(4)));
}
function inputForm(spec, index) {
  const sizes = spec.shape.map((size) => size), dynamic = [];
  const text = element("textarea", { id: `input-${index}`, spellcheck: false, rows: 3 });
  let kept = null; // values that are too many to be shown
  const fill = (values) => {
    kept = values.length > SHOWN ? values : null;
    text.value = kept ? "" : JSON.stringify(values).replaceAll(",", ", ");
    text.placeholder = kept ? `${kept.length.toLocaleString("en")} random values, too many to show. What you write here takes their place.` : "";
  };
  const shape = () => sizes.map((size, axis) => (size < 0 ? Number(dynamic.find((item) => item.axis === axis).field.value) : size));
  const refill = () => fill(random(spec, count(shape())));
  spec.shape.forEach((size, axis) => {
    if (size >= 0) return;
    const field = element("input", { type: "number", min: 1, value: 1, onchange: refill });
    dynamic.push({ axis, field });
  });
  const label = element("label", { className: "field", htmlFor: text.id }, `${spec.name} `, element("span", {}, `${spec.datatype} [${spec.shape.join(", ")}]`));
  const rows = dynamic.map(({ axis, field }) => element("label", {}, `Size of axis ${axis}`, field));
  const view = element("div", {}, label, ...(rows.length ? [element("div", { className: "sizes" }, ...rows)] : []), text);
  refill();
  return { view, refill, read: () => ({ name: spec.name, datatype: spec.datatype, shape: shape(), values: text.value.trim() ? parse(text.value, spec) : kept || [] }) };
}

// ---- pictures ----
async function takePicture(blob, name) {
  const types = state.model.parameters.picture.types;
  try {
    if (!types.includes(blob.type)) [blob, name] = [await asJpeg(await createImageBitmap(blob)), name.replace(/\.\w+$/, "") + ".jpg"];
  } catch {
    return show({ request: { curl: "", what: name }, error: "This browser cannot read that picture. Try a JPEG or PNG." });
  }
  const preview = URL.createObjectURL(blob);
  $("preview").src = preview;
  $("preview").alt = `The picture that was sent: ${name}`;
  $("preview").hidden = false;
  $("drop-note").hidden = true;
  $("drop").classList.add("filled");
  return send(pictureRequest(blob, name, preview));
}
function asJpeg(source) {
  const canvas = element("canvas", { width: source.videoWidth || source.width, height: source.videoHeight || source.height });
  canvas.getContext("2d").drawImage(source, 0, 0);
  return new Promise((resolve) => canvas.toBlob(resolve, "image/jpeg", 0.92));
}
async function openCamera() {
  try {
    state.stream = await navigator.mediaDevices.getUserMedia({ video: { facingMode: "environment" } });
  } catch {
    $("picture-note").textContent = "The browser gave no access to a camera.";
    return;
  }
  $("video").srcObject = state.stream;
  await $("video").play();
  camera(true);
}
function camera(on) {
  for (const id of ["video", "shoot"]) $(id).hidden = !on;
  $("camera").hidden = on;
  $("preview").hidden = on || !$("preview").src;
  $("drop-note").hidden = on || Boolean($("preview").src);
}
async function shoot() {
  const blob = await asJpeg($("video"));
  for (const track of state.stream.getTracks()) track.stop();
  camera(false);
  await takePicture(blob, "camera.jpg");
}

// ---- the model ----
function showModel(model) {
  Object.assign(state, { model, tries: [], last: null });
  document.title = `${model.name} ${model.versions[0]} · Wherry`;
  $("title").textContent = `${model.name} ${model.versions[0]}`;
  const { provider, runtime, precision, picture, labelled } = model.parameters;
  const facts = { Runtime: runtime, Provider: provider.replace("ExecutionProvider", ""), Precision: precision, ...(labelled ? { Classes: labelled.classes } : {}) };
  $("facts").replaceChildren(...Object.entries(facts).map(([name, value]) => element("li", {}, `${name} `, element("b", {}, String(value)))));
  const rows = [...model.inputs.map((spec) => ["→", "input", spec]), ...model.outputs.map((spec) => ["←", "output", spec])];
  $("signature").replaceChildren(...rows.map(([arrow, word, spec]) => element("tr", {},
    element("th", { scope: "row" }, element("span", { className: "way", title: word, ariaHidden: "true" }, arrow), element("span", { className: "visually-hidden" }, `${word} `), spec.name),
    element("td", {}, spec.datatype), element("td", {}, `[${spec.shape.join(", ")}]`))));
  state.inputs = model.inputs.map(inputForm);
  $("inputs").replaceChildren(...state.inputs.map((input) => input.view));
  $("picture").hidden = !picture;
  $("tensors").open = !picture;
  if (picture) {
    const how = { stretch: "stretches it", cover: "cuts it", contain: "fits it with a border" }[picture.fit];
    $("picture-note").textContent = `Any size; the server turns it upright and ${how} to ${picture.width} × ${picture.height}.`;
    $("camera").hidden = !(window.isSecureContext && navigator.mediaDevices);
  }
  $("answer").replaceChildren();
  $("status").textContent = "Nothing was sent yet.";
  $("repeat").disabled = true;
  $("call").hidden = $("past").hidden = true;
}
async function json(url, options) {
  const reply = await fetch(url, options);
  const body = await reply.json();
  if (!reply.ok) throw new Error(body.error || `status ${reply.status}`);
  return body;
}
async function open(name) {
  showModel(await json(`v2/models/${encodeURIComponent(name)}`));
}
async function start() {
  const models = await json("v2/repository/index", { method: "POST" });
  if (models.some((model) => model.state !== "READY")) return setTimeout(begin, 500);
  $("models").replaceChildren(...models.map((model) => element("option", {}, model.name)));
  $("models").closest("label").hidden = models.length < 2;
  return open(models[0].name);
}
function fail(error) {
  $("title").textContent = "No model";
  $("problem").textContent = `The model server cannot be asked: ${error.message}`;
  $("problem").hidden = false;
}
const begin = () => start().catch(fail);

$("models").addEventListener("change", () => open($("models").value).catch(fail));
$("random").addEventListener("click", () => state.inputs.forEach((input) => input.refill()));
$("repeat").addEventListener("click", repeat);
$("form").addEventListener("submit", (event) => {
  event.preventDefault();
  try {
    send(tensorRequest());
  } catch (error) {
    $("answer").replaceChildren(element("p", { className: "failed" }, error.message));
    $("status").textContent = "Not sent.";
  }
});
$("file").addEventListener("change", () => {
  const [file] = $("file").files;
  if (file) takePicture(file, file.name);
  $("file").value = "";
});
$("drop").addEventListener("dragover", (event) => { event.preventDefault(); $("drop").classList.add("over"); });
$("drop").addEventListener("dragleave", () => $("drop").classList.remove("over"));
$("drop").addEventListener("drop", (event) => {
  event.preventDefault();
  $("drop").classList.remove("over");
  const [file] = event.dataTransfer.files;
  if (file) takePicture(file, file.name);
});
document.addEventListener("paste", (event) => {
  const [file] = event.clipboardData.files;
  if (file && state.model && state.model.parameters.picture) takePicture(file, file.name);
});
$("camera").addEventListener("click", openCamera);
$("shoot").addEventListener("click", shoot);
$("copy").addEventListener("click", async () => {
  const text = $("curl").textContent;
  try {
    await navigator.clipboard.writeText(text);
  } catch { // only pages over HTTPS or from this machine may: mark the text instead
    getSelection().selectAllChildren($("curl"));
    document.execCommand("copy");
  }
  $("copy").textContent = "Copied";
  setTimeout(() => ($("copy").textContent = "Copy"), 1500);
});
begin();
