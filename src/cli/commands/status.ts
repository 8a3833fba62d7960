import { Client } from '../../client/index.ts';
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
    Space: `${space.state}, ${bytes(space.bytes)}${space.state === 'building' ? `, ${Math.floor(space.fraction * 100)}%` : ''}`,
    Packages: `${count(totals.packages, 'package')}, ${count(totals.versions, 'version')}`,
    Content: `${count(totals.blobs, 'blob')}, ${bytes(totals.bytes)}`,
    Memory: `${bytes(state.memory.residentBytes)} resident`,
    Work: `${count(resources.leases, 'operation')} now, ${resources.waiting} waiting`,
    Extensions: state.extensions.map(({ id, version, state: is }) => `${id}@${version} (${is})`).join(', '),
  });
  return { data: { running: true, http: found.http, ...state }, text };
}
