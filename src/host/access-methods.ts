import type { Consensus } from '../capabilities/consensus.ts';
import type { Method } from '../subsystems/stoq/index.ts';
import { ACCESS_LIMITS, accessAsk, accessOpened, accessProve, decodeAccess, encodeAccess } from '../wire/access.ts';

/** What a home answers as the one that gives content: who takes it to use it proves that it may (docs/protocol/access.md). */
export function accessMethods(
  consensus: Pick<Consensus, 'accessChallenge' | 'accessOpened' | 'validateAccessProof'>,
): ReadonlyMap<string, Method> {
  const method = (
    requestBytesMax: number,
    answer: (body: Uint8Array, publisher: string) => Promise<unknown>,
  ): Method => ({
    access: 'member',
    requestBytesMax,
    // The channel has proved who asks: a member always has a publisher.
    handle: async (body, from) => {
      const reply = await answer(body, from.publisher!);
      return reply === undefined ? new Uint8Array() : encodeAccess(reply);
    },
  });
  return new Map([
    [
      'access/ask',
      method(ACCESS_LIMITS.askBytesMax, async (body, publisher) => {
        const { use, packages } = decodeAccess(accessAsk, body, ACCESS_LIMITS.askBytesMax);
        return { challenge: await consensus.accessChallenge(publisher, use, packages) };
      }),
    ],
    [
      'access/opened',
      method(ACCESS_LIMITS.openedBytesMax, async (body, publisher) => {
        const { nonce, opening } = decodeAccess(accessOpened, body, ACCESS_LIMITS.openedBytesMax);
        await consensus.accessOpened(publisher, nonce, opening);
      }),
    ],
    [
      'access/prove',
      method(ACCESS_LIMITS.proveBytesMax, (body, publisher) =>
        consensus.validateAccessProof(publisher, decodeAccess(accessProve, body, ACCESS_LIMITS.proveBytesMax)),
      ),
    ],
  ]);
}
