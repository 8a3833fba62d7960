import { Client } from '../../client/index.ts';
import type { NodeStatus } from '../../wire/http.ts';
import type { Context, Outcome } from '../command.ts';
import { findNode } from '../connect.ts';
import { bytes, count, date, duration, fields } from '../terminal.ts';

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
  return { data: { running: true, http: found.http, ...state }, text };
}

/** State and size of the commitment, and when somebody last asked for labels of it. */
export function spaceLine({ state, bytes: size, fraction, auditedAtMs }: NodeStatus['space']): string {
  const progress = state === 'building' ? `, ${Math.floor(fraction * 100)}%` : '';
  const audited = auditedAtMs === null ? '' : `, audited ${duration(Math.max(0, Date.now() - auditedAtMs))} ago`;
  return `${state}, ${bytes(size)}${progress}${audited}`;
}

/** Nothing for a home that is in a network of its own. */
function networkFields({ state, addresses, problem, peers, transfers, resources, arrivals }: NodeStatus['transport']) {
  if (state === 'alone') return {};
  const moving = transfers.map(
    ({ blob, done, total, from }) =>
      `${blob.slice(7, 19)} ${bytes(done)} of ${bytes(total)} from ${count(from, 'node')}`,
  );
  const short = resources.underReplicated;
  return {
    Listening: problem ?? (addresses.join(', ') || 'no'),
    Peers: `${state}: ${peers.alive} of ${count(peers.known, 'node')} answer${arrivals === 0 ? '' : `, ${count(arrivals, 'record')} to judge`}`,
    Copies: `content of ${resources.held} of ${count(resources.known, 'package')} here${short === 0 ? '' : `, ${short} on too few nodes`}`,
    Transfers: moving.length === 0 ? 'none' : moving.join('; '),
  };
}
