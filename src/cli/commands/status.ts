import { Client } from '../../client/index.ts';
import type { NodeStatus } from '../../wire/http.ts';
import type { Context, Outcome } from '../command.ts';
import { findNode } from '../connect.ts';
import { bytes, count, date, duration, fields, table } from '../terminal.ts';

export async function status(context: Context): Promise<Outcome> {
  const { home } = (await context.load()).config;
  const found = await findNode(home);
  if (found === null) {
    return {
      data: { running: false, home },
      text: `No node runs on ${home}.\nStart one with \`hypermesh up --detach\`; other commands start one for as long as they need it.`,
    };
  }
  const state = await new Client(found).status({ signal: context.signal });
  const { publisher, space, totals, resources } = state;
  const text = fields({
    Node: `HyperMesh ${state.version}, Node ${state.runtime}, process ${state.pid}`,
    Address: found.http,
    Home: home,
    Up: duration(state.uptimeMs),
    Network: state.networkId,
    Publisher: `${publisher.subject}, key ${publisher.keyId.slice(0, 16)}, certificate until ${date(publisher.notAfterMs)}`,
    Space: spaceLine(space),
    Packages: `${count(totals.packages, 'package')}, ${count(totals.versions, 'version')}`,
    Content: `${count(totals.blobs, 'blob')}, ${bytes(totals.bytes)}`,
    ...networkFields(state.transport),
    Memory: `${bytes(state.memory.residentBytes)} resident`,
    Work: `${count(resources.leases, 'operation')} now, ${resources.waiting} waiting`,
    Extensions: state.extensions.map(({ id, version, state: is }) => `${id}@${version} (${is})`).join(', '),
  });
  const moving = movingText(state.transport.transfers);
  return { data: { running: true, http: found.http, ...state }, text: moving === '' ? text : `${text}\n\n${moving}` };
}

/** State and size of the commitment, and when somebody last asked for labels of it. */
export function spaceLine({ state, bytes: size, fraction, auditedAtMs }: NodeStatus['space']): string {
  const progress = state === 'building' ? `, ${Math.floor(fraction * 100)}%` : '';
  const audited = auditedAtMs === null ? '' : `, audited ${duration(Math.max(0, Date.now() - auditedAtMs))} ago`;
  return `${state}, ${bytes(size)}${progress}${audited}`;
}

/** Nothing for a home that is in a network of its own. */
function networkFields(transport: NodeStatus['transport']) {
  const { state, addresses, problem, peers, transfers, resources, coded, arrivals } = transport;
  if (state === 'alone') return {};
  const arriving = transfers.filter(({ direction }) => direction === 'in').length;
  const short = resources.underReplicated;
  return {
    Listening: problem === null ? addresses.join(', ') || 'no' : `no: ${problem} It is tried again.`,
    Peers: `${state}: ${peers.alive} of ${count(peers.known, 'node')} answer${arrivals === 0 ? '' : `, ${count(arrivals, 'record')} to judge`}`,
    Copies: `content of ${resources.held} of ${count(resources.known, 'package')} here${short === 0 ? '' : `, ${short} on too few nodes`}`,
    ...(coded.packages === 0
      ? {}
      : {
          Coded: `${count(coded.packages, 'package')}, ${count(coded.fragments, 'fragment')} here, ${coded.missing === 0 ? 'none' : coded.missing} missing`,
        }),
    Transfers: transfers.length === 0 ? 'none' : `${arriving} in, ${transfers.length - arriving} out`,
  };
}

type Transfers = NodeStatus['transport']['transfers'];

/** Of more, the fastest are shown. */
const SHOWN_MAX = 20;

/** What moves now, fastest first: which way, what, how far, how fast, with whom. */
export function movingText(transfers: Transfers): string {
  if (transfers.length === 0) return '';
  const sorted = transfers.toSorted((a, b) => b.bytesPerSecond - a.bytesPerSecond);
  const rows = sorted.slice(0, SHOWN_MAX).map((transfer) => {
    const { direction, done, total, bytesPerSecond, peers } = transfer;
    const far = direction === 'in' ? `${bytes(done)} of ${bytes(total)}` : `${bytes(done)} given of ${bytes(total)}`;
    const each = peers.map((peer) => {
      return `${peer.node.slice(0, 16)}${peers.length > 1 ? ` (${bytes(peer.bytesPerSecond)}/s)` : ''}`;
    });
    const whom = each.length === 0 ? 'nobody yet' : each.join(', ');
    return [direction, what(transfer), far, `${bytes(bytesPerSecond)}/s`, whom];
  });
  const more = transfers.length - rows.length;
  return `${table([['', 'Moving now', 'Bytes', 'Rate', 'With'], ...rows])}${more === 0 ? '' : `\nand ${more} more: --json lists all.`}`;
}

/** A blob that is in several packages, as a new version often has it, goes by the first. */
function what({ packages: [name, ...more], blob }: Transfers[number]): string {
  if (name === undefined) return `blob ${blob.slice(7, 19)}`;
  return more.length === 0 ? name : `${name} and ${more.length} more`;
}
