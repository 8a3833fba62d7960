import type { NKrypt } from '../subsystems/nkrypt/index.ts';
import type { Method } from '../subsystems/stoq/index.ts';
import { auditAsk, decodeSpaceAudit, encodeSpaceAudit, lostAsk, SPACE_AUDIT_LIMITS } from '../wire/space-audit.ts';

/** What a home answers to the validators of its network about space (docs/protocol/space-audit.md). */
export function spaceMethods(consensus: Pick<NKrypt, 'openForAudit' | 'lossSeen'>): ReadonlyMap<string, Method> {
  const method = (answer: (body: Uint8Array, publisher: string) => Promise<unknown>): Method => ({
    access: 'member',
    requestBytesMax: SPACE_AUDIT_LIMITS.askBytesMax,
    // The channel has proved who asks: a member always has a publisher.
    handle: async (body, from) => encodeSpaceAudit(await answer(body, from.publisher!)),
  });
  return new Map([
    [
      'space/audit',
      method((body, publisher) => consensus.openForAudit(publisher, decodeSpaceAudit(auditAsk, body).nonce)),
    ],
    [
      'space/lost',
      method(async (body, publisher) => {
        const { account, root } = decodeSpaceAudit(lostAsk, body);
        return { attestation: await consensus.lossSeen(publisher, account, root) };
      }),
    ],
  ]);
}
