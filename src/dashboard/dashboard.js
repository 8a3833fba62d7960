// @ts-check
/** The status page: reads the API of the node that serves it; changes nothing. Text from the node is only ever set as text. */

/** @import { NodeStatus } from '../wire/http.ts' */
/** @import { Event as NodeEvent } from '../wire/event.ts' */

/**
 * @typedef {object} Hit
 * @property {{ name: string, version: string, type: string, state: string, size: number, manifest: { description?: string, language?: string } }} record
 */
/** @typedef {{ hits: Hit[], total: number, cursor: string | null }} Page */

const STATUS_EVERY_MS = 3_000;
const EVENTS_SHOWN_MAX = 100;
const TYPING_PAUSE_MS = 200;

/** @param {string} id */
function at(id) {
  const found = document.getElementById(id);
  if (found === null) throw new Error(`no element ${id}`);
  return found;
}

/**
 * @param {string} tag
 * @param {string} [text]
 * @param {string} [className]
 */
function element(tag, text = '', className = '') {
  const made = document.createElement(tag);
  made.textContent = text;
  if (className !== '') made.className = className;
  return made;
}

/** @param {number} count */
function bytes(count) {
  const units = ['B', 'KiB', 'MiB', 'GiB', 'TiB'];
  const power = count < 1 ? 0 : Math.min(units.length - 1, Math.floor(Math.log2(count) / 10));
  return `${power === 0 ? count : (count / 2 ** (10 * power)).toFixed(1)} ${units[power]}`;
}

/** @param {number} ms */
function duration(ms) {
  const minutes = Math.floor(ms / 60_000);
  if (minutes < 1) return `${Math.floor(ms / 1_000)} s`;
  return minutes < 60 ? `${minutes} min` : `${Math.floor(minutes / 60)} h ${minutes % 60} min`;
}

/** @param {string} path */
async function get(path) {
  const response = await fetch(path, { headers: { accept: 'application/json' } });
  const body = await response.json();
  if (!response.ok) throw new Error(body.message ?? `status ${response.status}`);
  return body;
}

/** @param {'good' | 'bad'} kind @param {string} text */
function showState(kind, text) {
  const state = at('state');
  if (state.textContent !== text) state.textContent = text;
  state.className = `pill ${kind}`;
}

async function refreshStatus() {
  try {
    /** @type {NodeStatus} */
    const status = await get('/v1/status');
    showState('good', 'running');
    showStatus(status);
  } catch {
    showState('bad', 'not answering');
  }
  setTimeout(refreshStatus, STATUS_EVERY_MS);
}

/** @param {NodeStatus} status */
function showStatus({
  totals,
  memory,
  resources,
  uptimeMs,
  space,
  version,
  runtime,
  networkId,
  publisher,
  home,
  extensions,
}) {
  const figures = {
    packages: totals.packages.toLocaleString(),
    versions: totals.versions.toLocaleString(),
    content: bytes(totals.bytes),
    memory: bytes(memory.residentBytes),
    'operations now': `${resources.leases}${resources.waiting > 0 ? ` + ${resources.waiting} waiting` : ''}`,
    'memory lent': `${bytes(resources.leased.memoryBytes)}`,
    up: duration(uptimeMs),
  };
  at('figures').replaceChildren(
    ...Object.entries(figures).map(([name, value]) => {
      const card = element('p');
      card.append(element('strong', value), element('span', name));
      return card;
    }),
  );
  const identity = {
    Network: networkId,
    Publisher: `${publisher.subject}, key ${publisher.keyId}`,
    'Certificate until': new Date(publisher.notAfterMs).toLocaleDateString(),
    Home: home,
    Version: `HyperMesh ${version}, Node ${runtime}`,
    Extensions: extensions.map(({ id, version: is, state }) => `${id} ${is} (${state})`).join(', '),
  };
  at('identity').replaceChildren(
    ...Object.entries(identity).flatMap(([name, value]) => [element('dt', name), element('dd', value)]),
  );
  /** @type {HTMLProgressElement} */ (at('space')).value = space.state === 'ready' ? 1 : space.fraction;
  at('space-text').textContent =
    `${space.state}, ${bytes(space.bytes)}${space.state === 'building' ? `, ${Math.floor(space.fraction * 100)}%` : ''}`;
}

/** @type {string | null} */
let cursor = null;
let searches = 0;

/** @param {boolean} more */
async function showPackages(more) {
  searches += 1;
  const mine = searches;
  const text = /** @type {HTMLInputElement} */ (at('query')).value;
  const query = new URLSearchParams({ text, ...(more && cursor !== null ? { cursor } : {}) });
  const found = at('found');
  try {
    /** @type {Page} */
    const page = await get(`/v1/packages?${query}`);
    if (mine !== searches) return;
    cursor = page.cursor;
    const rows = page.hits.map(packageRow);
    if (more) at('packages').append(...rows);
    else at('packages').replaceChildren(...rows);
    found.textContent = `${page.total.toLocaleString()} package${page.total === 1 ? '' : 's'}`;
    found.className = 'quiet';
    at('more').hidden = cursor === null;
  } catch (error) {
    found.textContent = error instanceof Error ? error.message : String(error);
    found.className = 'error';
  }
}

/** @param {Hit} hit */
function packageRow({ record }) {
  const row = element('li');
  const head = element('p');
  head.append(element('strong', record.name), ` ${record.version}`, element('span', record.type, 'tag'));
  if (record.manifest.language !== undefined) head.append(element('span', record.manifest.language, 'tag'));
  if (record.state !== 'published') head.append(element('span', record.state, 'tag error'));
  head.append(element('span', bytes(record.size), 'tag'));
  row.append(head);
  if (record.manifest.description !== undefined) row.append(element('p', record.manifest.description, 'quiet'));
  return row;
}

function followEvents() {
  const source = new EventSource(`/v1/events?last=${EVENTS_SHOWN_MAX}`);
  source.onmessage = ({ data }) => {
    /** @type {NodeEvent} */
    const event = JSON.parse(data);
    at('no-events').hidden = true;
    const list = at('events');
    list.prepend(eventRow(event));
    while (list.childElementCount > EVENTS_SHOWN_MAX) list.lastElementChild?.remove();
    if (/^catalog\.(published|deleted|state)/.test(event.type) && cursor === null) void showPackages(false);
  };
}

/** @param {NodeEvent} event */
function eventRow({ atMs, type, severity, source, data }) {
  const row = element('li');
  const head = element('p');
  const time = element('time', new Date(atMs).toLocaleString());
  time.setAttribute('datetime', new Date(atMs).toISOString());
  head.append(element('strong', type, severity === 'info' ? '' : 'error'), element('span', source, 'tag'), ' ', time);
  row.append(head, element('p', JSON.stringify(data).slice(0, 400), 'quiet code'));
  return row;
}

/** @type {ReturnType<typeof setTimeout> | undefined} */
let pause;
at('query').addEventListener('input', () => {
  clearTimeout(pause);
  pause = setTimeout(() => void showPackages(false), TYPING_PAUSE_MS);
});
at('search').addEventListener('submit', (event) => {
  event.preventDefault();
  void showPackages(false);
});
at('more').addEventListener('click', () => void showPackages(true));

void refreshStatus();
void showPackages(false);
followEvents();
