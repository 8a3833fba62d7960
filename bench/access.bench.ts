import { mkdtemp, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { digestOf } from '../src/base/digest.ts';
import { HyperMesh } from '../src/index.ts';
import type { NKrypt } from '../src/subsystems/nkrypt/index.ts';
import type { Ask } from '../src/subsystems/stoq/ask.ts';
import { type Bench, inTurn, timed } from './harness.ts';
import { DEFAULT_PROOFS } from './networks.ts';
import { squarer } from './squarings.ts';

const ROUNDS = 15;

export const bench: Bench = {
  name: 'access',
  about:
    'proving to another node that content may be used, over the channel, against the squarings in the proof and a ping',
  async run() {
    const folder = await mkdtemp(join(tmpdir(), 'hypermesh-bench-'));
    try {
      await using stack = new AsyncDisposableStack();
      let aheadMs = 0;
      const open = async (name: string, stays: boolean) =>
        stack.use(
          await HyperMesh.create({
            ...{ home: join(folder, name), network: DEFAULT_PROOFS, peers: { stays, lan: false } },
            clock: { nowMs: () => Date.now() + aheadMs },
          }),
        );
      const [giver, taker] = [await open('giver', true), await open('taker', false)];
      await giver.node.membership.create({ listen: '127.0.0.1:0' });
      await taker.node.membership.join((await giver.node.membership.invite()).invite);
      await taker.node.consensus.commitSpace();
      const { node } = await giver.node.membership.place();
      const { ask } = taker.node.transport as unknown as { readonly ask: Ask };
      const consensus = taker.node.consensus as NKrypt;
      const prove = (packages: number) =>
        consensus.gainAccess(
          node,
          'install',
          Array.from({ length: packages }, (_, i) => digestOf(new Uint8Array([i]))),
          (method, body, options) => ask(node, method, body, options),
        );
      const anew = async (packages: number) => {
        aheadMs += DEFAULT_PROOFS.requirements.install.time.windowMs + 1;
        return timed(() => prove(packages));
      };
      const square = squarer();
      const { squarings } = DEFAULT_PROOFS.requirements.install.time;
      const bare = () => timed(() => square(squarings));
      const ping = () => timed(() => ask(node, 'overlay/ping', new Uint8Array(), { replyBytesMax: 0 }));
      await sleep(500);
      const [one, many] = [await inTurn(ROUNDS, () => anew(1), bare), await inTurn(ROUNDS, () => anew(100), bare)];
      const again = await inTurn(ROUNDS, () => timed(() => prove(100)), ping);
      const reference = `${squarings} bare squarings by OpenSSL`;
      return [
        { name: 'prove access to one package', unit: 'ms', reference, ...one },
        { name: 'prove access to a hundred', unit: 'ms', reference, ...many },
        { name: 'ask while it lasts', unit: 'ms', reference: 'a ping', ...again },
      ];
    } finally {
      await rm(folder, { recursive: true, force: true });
    }
  },
};
