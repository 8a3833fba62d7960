import type { Context, Outcome } from '../command.ts';
import { bytes, count, date, table } from '../terminal.ts';
import { hexId } from './trust.ts';

export async function peers(context: Context, options: { readonly discover?: boolean }): Promise<Outcome> {
  const list = await context.withNode((client) =>
    options.discover === true ? client.discoverPeers(context) : client.peers(context),
  );
  const rows = list.map((peer) => [
    peer.node,
    peer.state,
    peer.addresses.join(' '),
    peer.rttMs === null ? '' : `${peer.rttMs.toFixed(1)} ms`,
    `${bytes(peer.bytesIn)} in, ${bytes(peer.bytesOut)} out`,
    peer.reason ?? (peer.seenAtMs === null ? '' : `seen ${date(peer.seenAtMs)}`),
  ]);
  const text =
    list.length === 0
      ? 'This home is in no network with other nodes.\nMake one: hypermesh network create\nJoin one: hypermesh network join INVITE'
      : table([['Node', 'State', 'Address', 'Round trip', 'Traffic', ''], ...rows]);
  return { data: { peers: list }, text };
}

export async function forgive(context: Context, node: string): Promise<Outcome> {
  hexId(node, 'a node', '`hypermesh peers` lists the nodes.');
  const forgiven = await context.withNode((client) => client.forgive({ node }, context));
  return { data: forgiven, text: `Node ${node.slice(0, 16)} is spoken to again.` };
}

export async function sync(context: Context): Promise<Outcome> {
  const summary = await context.withNode((client) => client.sync(context));
  const { nodes, unreachable, received, offered } = summary;
  const away = unreachable === 0 ? '' : `, ${unreachable} did not answer`;
  return {
    data: summary,
    text: `Compared records with ${count(nodes, 'node')}${away}: ${received} new here, ${offered} new there.`,
  };
}

export async function distribute(context: Context, ref: string): Promise<Outcome> {
  const result = await context.withNode((client) => client.distribute(ref, context));
  const { holders, wanted } = result;
  const short = holders.length < wanted ? ` (${wanted} wanted; the network has no more nodes that take it)` : '';
  const list = holders.map((node) => `  ${node}`).join('\n');
  return { data: result, text: `${ref} is held by ${count(holders.length, 'node')}${short}:\n${list}` };
}
