// @ts-check
/** The status page: reads the API of the node that serves it; changes nothing. Text from the node is only ever set as text. */

/** @import { NodeStatus } from '../wire/http.ts' */
/** @import { Event as NodeEvent } from '../wire/event.ts' */
/** @import { CommitteeInfo } from '../capabilities/membership.ts' */
/** @import { PeerInfo } from '../capabilities/transport.ts' */

/**
 * @typedef {object} Hit
 * @property {{ name: string, version: string, type: string, state: string, size: number, manifest: { description?: string, language?: string } }} record
 */
/** @typedef {{ hits: Hit[], total: number, cursor: string | null }} Page */

const STATUS_EVERY_MS = 3_000;
const EVENTS_SHOWN_MAX = 100;
const COMMITTEE_EVERY_MS = 10_000;
const TYPING_PAUSE_MS = 200;
const PEERS_SHOWN_MAX = 100;

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
    await showNetwork(status.transport);
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
  at('figures').replaceChildren(...cards(figures));
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

/** @param {Record<string, string>} figures */
function cards(figures) {
  return Object.entries(figures).map(([name, value]) => {
    const card = element('p');
    card.append(element('strong', value), element('span', name));
    return card;
  });
}

/**
 * What belongs to the other nodes of the network; nothing for a home that is alone.
 * @param {NodeStatus['transport']} transport
 */
async function showNetwork({ state, problem, peers, transfers, resources, arrivals }) {
  at('network').hidden = state === 'alone';
  if (state === 'alone') return;
  at('network-problem').hidden = problem === null;
  at('network-problem').textContent = problem;
  const figures = cards({
    'other nodes answer': `${peers.alive.toLocaleString()} of ${peers.known.toLocaleString()}`,
    'packages held here': `${resources.held.toLocaleString()} of ${resources.known.toLocaleString()}`,
    'held here, with too few copies': resources.underReplicated.toLocaleString(),
    'records to judge': arrivals.toLocaleString(),
  });
  if (state === 'offline') figures[0]?.classList.add('error');
  if (resources.underReplicated > 0) figures[2]?.classList.add('error');
  at('network-figures').replaceChildren(...figures);
  at('no-transfers').hidden = transfers.length > 0;
  at('transfers').replaceChildren(...transfers.map(transferRow));
  showPeers(await get('/v1/peers'));
  if (performance.now() > committeeDueMs) {
    committeeDueMs = performance.now() + COMMITTEE_EVERY_MS;
    // Not waited for: names come from the committee, which may be away.
    void get('/v1/network/validators').then(showCommittee, () => undefined);
  }
}

let committeeDueMs = 0;

/** @param {CommitteeInfo} committee */
function showCommittee({ epoch, quorum, validators }) {
  at('committee-text').textContent =
    `Epoch ${epoch.toLocaleString()}: ${quorum} of ${count(validators.length, 'validator')} must agree.`;
  at('committee').replaceChildren(
    ...validators.map(({ subject, validator, isSelf, isReachable, locked }) => {
      const row = element('li');
      const head = element('p');
      const state = isSelf ? 'this node' : isReachable ? 'answers' : 'not reached';
      head.append(element('span', subject ?? validator, subject === null ? 'code' : ''));
      head.append(element('span', state, `tag${isReachable ? ' good' : ' error'}`));
      row.append(head);
      if (locked !== null) row.append(element('p', `${locked.toLocaleString()} tokens answer for it`, 'quiet'));
      return row;
    }),
  );
}

/** @param {NodeStatus['transport']['transfers'][number]} transfer */
function transferRow({ direction, blob, packages, done, total, bytesPerSecond, peers }) {
  const row = element('li');
  const isArriving = direction === 'in';
  const name = packages[0] ?? blob;
  const head = element('p');
  head.append(element('span', name, packages.length === 0 ? 'code' : ''));
  if (packages.length > 1) head.append(element('span', ` and ${packages.length - 1} more`, 'quiet'));
  head.append(element('span', isArriving ? 'arrives' : 'leaves', 'tag'));
  row.append(head);
  const bar = element('div', '', 'bar');
  const progress = /** @type {HTMLProgressElement} */ (element('progress'));
  progress.max = Math.max(1, total);
  progress.value = done;
  progress.setAttribute('aria-label', `Transfer of ${packages[0] ?? blob.slice(7, 19)}`);
  const far = `${bytes(done)} ${isArriving ? 'of' : 'given of'} ${bytes(total)}, ${bytes(bytesPerSecond)}/s`;
  bar.append(progress, element('span', far, 'quiet'));
  row.append(bar);
  const whom = peers.map(({ node }) => node.slice(0, 16)).join(', ');
  if (whom !== '') row.append(element('p', `${isArriving ? 'from' : 'to'} ${whom}`, 'quiet code'));
  return row;
}

/** In which order nodes are shown. */
const PEER_STATES = ['self', 'alive', 'suspect', 'unknown', 'away', 'banned'];

let peersShown = '';

/** @param {PeerInfo[]} peers */
function showPeers(peers) {
  const sorted = peers.toSorted((a, b) => PEER_STATES.indexOf(a.state) - PEER_STATES.indexOf(b.state));
  const shown = sorted.slice(0, PEERS_SHOWN_MAX);
  // Rows that stay as they are can be selected and copied.
  const now = JSON.stringify(shown.map(peerText));
  if (now === peersShown) return;
  peersShown = now;
  at('peers').replaceChildren(...shown.map(peerRow));
  const more = peers.length - shown.length;
  at('more-peers').hidden = more === 0;
  at('more-peers').textContent = `and ${more.toLocaleString()} more`;
}

/** @param {PeerInfo} peer */
function peerText({ node, state, addresses, rttMs, bytesIn, bytesOut, seenAtMs, reason, bannedAtMs }) {
  const seen = state === 'away' && seenAtMs !== null ? [`seen ${new Date(seenAtMs).toLocaleString()}`] : [];
  const open = rttMs === null ? [] : [`${rttMs.toFixed(1)} ms`];
  const traffic = bytesIn + bytesOut === 0 ? [] : [`${bytes(bytesIn)} in, ${bytes(bytesOut)} out`];
  const where = addresses.length === 0 ? [] : [addresses.join(', ')];
  return {
    node,
    state: state === 'self' ? 'this node' : state,
    facts: [...where, ...open, ...traffic, ...seen].join(' · '),
    reason: bannedAtMs === null ? reason : `since ${new Date(bannedAtMs).toLocaleString()}: ${reason}`,
  };
}

/** @param {PeerInfo} peer */
function peerRow(peer) {
  const { node, state, facts, reason } = peerText(peer);
  const row = element('li');
  const head = element('p');
  const kind = { alive: ' good', self: ' good', away: ' error', banned: ' error', suspect: '', unknown: '' }[
    peer.state
  ];
  head.append(element('span', node, 'code'), element('span', state, `tag${kind}`));
  row.append(head);
  if (facts !== '') row.append(element('p', facts, 'quiet'));
  if (reason !== null) row.append(element('p', reason, 'error'));
  return row;
}

/** @param {number} number @param {string} what */
function count(number, what) {
  return `${number.toLocaleString()} ${what}${number === 1 ? '' : 's'}`;
}

/** @type {string | null} */
let cursor = null;
/** Whether further pages stand below the first; a fresh first page would take them away. */
let isPaged = false;
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
    isPaged = more;
    const rows = page.hits.map(packageRow);
    if (more) at('packages').append(...rows);
    else at('packages').replaceChildren(...rows);
    found.textContent =
      page.total === 0 && text === '' ? 'None yet: hypermesh publish DIR' : count(page.total, 'package');
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
  at('events').replaceChildren();
  const source = new EventSource(`/v1/events?last=${EVENTS_SHOWN_MAX}`);
  // A browser comes back by itself after a lost connection, and not after a refusal: these events are gone, begin with what is kept.
  source.onerror = () => {
    if (source.readyState === EventSource.CLOSED) setTimeout(followEvents, STATUS_EVERY_MS);
  };
  source.onmessage = ({ data }) => {
    /** @type {NodeEvent} */
    const event = JSON.parse(data);
    at('no-events').hidden = true;
    const list = at('events');
    list.prepend(eventRow(event));
    while (list.childElementCount > EVENTS_SHOWN_MAX) list.lastElementChild?.remove();
    if (/^catalog\.(published|arrived|conflict|deprecated|yanked|deleted)/.test(event.type) && !isPaged) searchSoon();
  };
}

/** What an event says, as name and value. @param {NodeEvent['data']} data */
function facts(data) {
  if (data === null || typeof data !== 'object' || Array.isArray(data)) return JSON.stringify(data);
  return Object.entries(data)
    .map(([name, value]) => `${name}: ${typeof value === 'object' ? JSON.stringify(value, null, 1) : value}`)
    .join(' · ');
}

/** @param {NodeEvent} event */
function eventRow({ atMs, type, severity, source, data }) {
  const row = element('li');
  const head = element('p');
  const time = element('time', new Date(atMs).toLocaleString());
  time.setAttribute('datetime', new Date(atMs).toISOString());
  head.append(element('strong', type, severity === 'info' ? '' : 'error'), element('span', source, 'tag'), ' ', time);
  row.append(head, element('p', facts(data).slice(0, 400), 'quiet code'));
  return row;
}

/** @type {ReturnType<typeof setTimeout> | undefined} */
let pause;
/** Once for all that comes in a moment: letters, events. */
function searchSoon() {
  clearTimeout(pause);
  pause = setTimeout(() => void showPackages(false), TYPING_PAUSE_MS);
}
at('query').addEventListener('input', searchSoon);
at('search').addEventListener('submit', (event) => {
  event.preventDefault();
  void showPackages(false);
});
at('more').addEventListener('click', () => void showPackages(true));

void refreshStatus();
void showPackages(false);
followEvents();
