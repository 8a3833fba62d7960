import { randomBytes } from 'node:crypto';
import type { LookupAddress } from 'node:dns';
import { lookup } from 'node:dns/promises';
import { once } from 'node:events';
import { chmod, mkdir, open, rm } from 'node:fs/promises';
import { BlockList, connect, createServer, isIP, type Server, type Socket } from 'node:net';
import path from 'node:path';

/** Connections of one program at the same time, all places together. */
const CONNECTIONS_MAX = 64;
const CONNECTING_MS_MAX = 15_000;

/** Where only this machine and its neighbours are: no name that strangers control leads there. */
const NEAR = new BlockList();
for (const [net, bits] of [
  ['0.0.0.0', 8],
  ['10.0.0.0', 8],
  ['100.64.0.0', 10],
  ['127.0.0.0', 8],
  ['169.254.0.0', 16],
  ['172.16.0.0', 12],
  ['192.0.0.0', 24],
  ['192.168.0.0', 16],
  ['198.18.0.0', 15],
  ['224.0.0.0', 3],
] as const)
  NEAR.addSubnet(net, bits, 'ipv4');
for (const [net, bits] of [
  ['::', 127],
  ['64:ff9b::', 96],
  ['64:ff9b:1::', 48],
  ['2002::', 16],
  ['fc00::', 7],
  ['fe80::', 10],
  ['ff00::', 8],
] as const)
  NEAR.addSubnet(net, bits, 'ipv6');

/** For tests: names are not always looked up. */
export type Resolve = (host: string) => Promise<readonly LookupAddress[]>;

export interface RelaysOptions {
  /** Ours alone, and reached by the users of boxes; made when missing. */
  readonly directory: string;
  readonly resolve?: Resolve;
}

/** The sockets by which one program reaches the places that it was granted; all is closed with it. */
export interface Relays extends AsyncDisposable {
  /** One for each place: the socket's file, to be shown to the box. */
  readonly sockets: readonly { readonly source: string; readonly place: string }[];
}

/**
 * A program in a box has no network. What it gets is a socket file for each place: the node, not the program, looks the name up and connects, so the
 * place is the only one there is. A name that leads to this machine or to its private neighbourhood is not followed; an address is.
 */
export async function openRelays(
  places: readonly string[],
  { directory, resolve = (host) => lookup(host, { all: true, verbatim: true }) }: RelaysOptions,
): Promise<Relays> {
  await using stack = new AsyncDisposableStack();
  const folder = path.join(directory, randomBytes(16).toString('hex'));
  await mkdir(folder, { recursive: true, mode: 0o711 });
  stack.defer(() => rm(folder, { recursive: true, force: true }));
  for (const one of [directory, folder]) await chmod(one, 0o711);
  const open_ = new Set<Socket>();
  stack.defer(() => {
    for (const socket of open_) socket.destroy();
  });
  const sockets: Relays['sockets'][number][] = [];
  for (const [index, place] of places.entries()) {
    const server = createServer({ allowHalfOpen: true }, (from) => {
      if (open_.size >= 2 * CONNECTIONS_MAX) {
        from.destroy();
        return;
      }
      track(open_, from);
      forward(from, place, resolve, (to) => track(open_, to));
    });
    const source = path.join(folder, String(index));
    await listen(server, folder, String(index));
    stack.defer(() => void server.close());
    // The folder cannot be listed, and its name cannot be guessed; as root, it is given to the user of the box.
    await chmod(source, 0o600);
    sockets.push({ source, place });
  }
  const owned = stack.move();
  return { sockets, [Symbol.asyncDispose]: () => owned.disposeAsync() };
}

/** The name of a socket has at most 107 bytes; a home may lie deeper than that. */
async function listen(server: Server, folder: string, name: string): Promise<void> {
  await using handle = await open(folder, 'r');
  server.listen({ path: `/proc/self/fd/${handle.fd}/${name}`, exclusive: true });
  await once(server, 'listening');
}

function track(all: Set<Socket>, socket: Socket): void {
  all.add(socket);
  socket.once('close', () => all.delete(socket));
  socket.on('error', () => socket.destroy());
}

function forward(from: Socket, place: string, resolve: Resolve, opened: (to: Socket) => void): void {
  from.pause();
  void (async () => {
    const { host, port } = parts(place);
    for (const address of await addressesOf(host, resolve)) {
      if (from.destroyed) return;
      const to = connect({ host: address, port, allowHalfOpen: true, noDelay: true });
      opened(to);
      if (!(await isConnected(to))) continue;
      from.pipe(to).pipe(from);
      from.once('close', () => to.destroy());
      to.once('close', () => from.destroySoon());
      return;
    }
    from.destroy();
  })().catch(() => from.destroy());
}

function parts(place: string): { readonly host: string; readonly port: number } {
  const at = place.lastIndexOf(':');
  return { host: place.slice(0, at).replace(/^\[|\]$/g, ''), port: Number(place.slice(at + 1)) };
}

/** An address as it was granted; of a name, what lies out in the world. */
async function addressesOf(host: string, resolve: Resolve): Promise<string[]> {
  if (isIP(host) !== 0) return [host];
  // Says itself that it is this machine.
  if (host === 'localhost') return ['127.0.0.1', '::1'];
  return (await resolve(host)).filter(({ address, family }) => !isNear(address, family)).map(({ address }) => address);
}

function isNear(address: string, family: number): boolean {
  const mapped = /^::ffff:(\d+\.\d+\.\d+\.\d+)$/i.exec(address)?.[1];
  if (mapped !== undefined) return NEAR.check(mapped, 'ipv4');
  return NEAR.check(address, family === 6 ? 'ipv6' : 'ipv4');
}

async function isConnected(to: Socket): Promise<boolean> {
  to.setTimeout(CONNECTING_MS_MAX, () => to.destroy());
  return new Promise((settle) => {
    to.once('connect', () => {
      to.setTimeout(0);
      settle(true);
    });
    to.once('close', () => settle(false));
  });
}
