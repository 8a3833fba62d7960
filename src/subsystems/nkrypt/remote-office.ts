import { z } from 'zod';
import { base64 } from '../../base/bytes.ts';
import type { CallOptions } from '../../base/call.ts';
import { HyperMeshError, isCoded } from '../../base/errors.ts';
import { hex32, tokens } from '../../wire/fields.ts';
import { firstIssue } from '../../wire/signature.ts';
import type { LedgerOffice, OfficeAccount } from './own-account.ts';
import type { Quorum } from './quorum.ts';

const account: z.ZodType<OfficeAccount> = z.strictObject({
  account: hex32,
  balance: tokens,
  locked: tokens,
  unbonding: z.array(z.strictObject({ amount: tokens, endsAtMs: z.int().nonnegative().nullable() })).max(64),
  number: z.int().nonnegative(),
  isSuspended: z.boolean(),
});

/** An entry is in the order when a quorum has certified it, which takes as long as the slowest of them. */
const ENTRY_TIMEOUT_MS = 60_000;

/** The committee's order, as a home without a seat in it reaches it. Errors of all: `committee-unreachable`, and what the committee refuses with. */
export class RemoteOffice implements LedgerOffice {
  readonly #ask: Quorum['agreed'];

  constructor(quorum: Pick<Quorum, 'agreed'>) {
    this.#ask = (...question) => quorum.agreed(...question);
  }

  async submit(entry: Uint8Array, options: CallOptions = {}): Promise<void> {
    const ask = () =>
      this.#ask('committee/entry', { entry: base64(entry) }, { ...options, timeoutMs: ENTRY_TIMEOUT_MS });
    // An answer that got lost: the same entry is in the order once.
    await ask().catch((error: unknown) => {
      if (isCoded(error, 'committee-unreachable')) return ask();
      throw error;
    });
  }

  async account(id: string): Promise<OfficeAccount> {
    const answer = understood(account, await this.#ask('committee/account', {}));
    if (answer.account === id) return answer;
    throw senseless('it answered about another account');
  }

  async ownerOf(name: string): Promise<string | null> {
    const schema = z.strictObject({ owner: hex32.nullable() });
    return understood(schema, await this.#ask('committee/name', { name })).owner;
  }
}

function understood<T>(schema: z.ZodType<T>, answer: unknown): T {
  const parsed = schema.safeParse(answer);
  if (parsed.success) return parsed.data;
  throw senseless(firstIssue(parsed.error));
}

function senseless(why: string): HyperMeshError {
  return new HyperMeshError('proof-invalid', `The committee gave an answer that makes no sense: ${why}.`, {
    hint: 'Its machine runs another version of HyperMesh, or is not the committee.',
  });
}
