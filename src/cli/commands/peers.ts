import { fromBase64, fromUtf8, hex } from '../../base/bytes.ts';
import { HyperMeshError } from '../../base/errors.ts';
import type { Code } from '../../capabilities/transport.ts';
import type { Context, Outcome } from '../command.ts';
import { bytes, count, date, fields, table } from '../terminal.ts';
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
    peer.bannedAtMs === null
      ? peer.seenAtMs === null
        ? ''
        : `seen ${date(peer.seenAtMs)}`
      : `since ${date(peer.bannedAtMs)}: ${peer.reason ?? ''}`,
  ]);
  const text =
    list.length === 0
      ? 'This home is in no network with other nodes.\nMake one: hypermesh network create\nJoin one: hypermesh network join INVITE'
      : table([['Node', 'State', 'Address', 'Round trip', 'Traffic', ''], ...rows]);
  return { data: { peers: list }, text };
}

const UNTIL = 'you forgive it (`hypermesh peers forgive NODE`), or this home leaves the network';

/** Who is not spoken to; of one node also what shows that this is right. */
export async function bans(context: Context, node: string | undefined): Promise<Outcome> {
  if (node !== undefined) {
    hexId(node, 'a node', '`hypermesh peers bans` lists those that are banned.');
    const ban = await context.withNode((client) => client.ban(node, context));
    const { reason, bannedAtMs, evidenceBytes, evidence } = ban;
    const head = fields({ Node: node, Why: reason, Since: date(bannedAtMs), Until: UNTIL });
    return { data: ban, text: `${head}\n\nEvidence, ${bytes(evidenceBytes)}:\n${shown(fromBase64(evidence))}` };
  }
  const list = await context.withNode((client) => client.bans(context));
  const rows = list.map((ban) => [ban.node, date(ban.bannedAtMs), bytes(ban.evidenceBytes), ban.reason]);
  const text =
    list.length === 0
      ? 'No node is banned.'
      : `${table([['Node', 'Since', 'Evidence', 'Why'], ...rows])}\nEach until ${UNTIL}.`;
  return { data: { bans: list }, text };
}

/** Of evidence, for a terminal. */
const SHOWN_BYTES_MAX = 1_024;

/** Text as it is, other bytes as hexadecimal digits. */
function shown(evidence: Uint8Array): string {
  const first = evidence.subarray(0, SHOWN_BYTES_MAX);
  const more = evidence.length > first.length ? `\n… --json has all of it, in base64.` : '';
  const isText = first.every((byte) => byte === 0x0a || byte === 0x09 || (byte >= 0x20 && byte < 0x7f));
  if (isText) return `  ${fromUtf8(first).replaceAll('\n', '\n  ')}${more}`;
  const lines = hex(first).match(/.{1,64}/g) ?? [];
  return `  ${lines.join('\n  ')}${more}`;
}

export async function forgive(context: Context, node: string): Promise<Outcome> {
  hexId(node, 'a node', '`hypermesh peers` lists the nodes.');
  const forgiven = await context.withNode((client) => client.forgive({ node }, context));
  return { data: forgiven, text: `Node ${node.slice(0, 16)} is spoken to again.` };
}

export async function sync(context: Context): Promise<Outcome> {
  const summary = await context.withNode((client) => client.sync(context));
  const { nodes, unreachable, received, offered } = summary;
  if (nodes === 0) {
    const known = unreachable === 0 ? 'No other node is known yet' : `None of ${count(unreachable, 'node')} answers`;
    return { data: summary, text: `${known}. This node compares records by itself as soon as one does.` };
  }
  const away = unreachable === 0 ? '' : `, ${unreachable} did not answer`;
  return {
    data: summary,
    text: `Compared records with ${count(nodes, 'node')}${away}: ${received} new here, ${offered} new there.`,
  };
}

export async function distribute(context: Context, ref: string, options: { readonly code?: string }): Promise<Outcome> {
  const code = options.code === undefined ? {} : { code: parseCode(options.code) };
  const result = await context.withNode((client) =>
    client.distribute(ref, { signal: context.signal, onProgress: context.onProgress, ...code }),
  );
  const { holders, wanted, fragments } = result;
  if (fragments !== undefined) {
    const missing = fragments.filter(({ node }) => node === null).length;
    const short = missing === 0 ? '' : `\n${count(missing, 'fragment')} that no node took will be placed later.`;
    const list = fragments
      .map(({ index, node }) => `  ${String(index).padStart(2)}  ${node ?? 'nobody yet'}`)
      .join('\n');
    return { data: result, text: `Any ${code.code?.k} of ${wanted} fragments restore ${ref}:\n${list}${short}` };
  }
  const short = holders.length < wanted ? ` (${wanted} wanted; no more nodes that answer take it)` : '';
  const list = holders.map((node) => `\n  ${node}`).join('');
  const text = `${ref} is held by ${count(holders.length, 'node')}${short}${list === '' ? '.' : `:${list}`}`;
  return { data: result, text };
}

function parseCode(text: string): Code {
  const [, k, m] = /^([1-9][0-9]?)\+([1-9][0-9]?)$/.exec(text) ?? [];
  if (k !== undefined && m !== undefined) return { k: Number(k), m: Number(m) };
  throw new HyperMeshError('usage', `Expected a code like 4+2, but got ${JSON.stringify(text.slice(0, 50))}.`, {
    hint: 'Any 4 of 4+2 fragments restore the content.',
  });
}
