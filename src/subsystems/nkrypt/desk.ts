import type { CallOptions } from '../../base/call.ts';
import { HyperMeshError } from '../../base/errors.ts';
import type { Json } from '../../base/json.ts';
import { type CommitteeMethod, type CommitteeRequest, decodeRequest } from '../../wire/committee.ts';
import type { Challenge, Operation } from '../../wire/proof.ts';
import { decodeProofSet } from '../../wire/proof.ts';
import type { Committee } from './committee.ts';
import { Allowance } from './order/allowance.ts';
import type { LedgerOffice } from './own-account.ts';

/** Submissions that are judged at the same time for one identity; each costs some milliseconds of a processor. */
const SUBMISSIONS_EACH_MAX = 4;
/** What one member may bring into the order: some four entries a second, more than it can prove operations. */
const OF_MEMBER = { entriesMax: 240, bytesMax: 8 * 2 ** 20, runningMax: 8, heldMs: 60_000 };
/** What all of them may: half of what the engine takes of one validator, so that as much is left for its own. */
const OF_ALL = { entriesMax: 256, bytesMax: 4 * 2 ** 20, runningMax: 256, heldMs: 10_000 };

type Handler<M extends CommitteeMethod> = (
  identity: string,
  request: CommitteeRequest<M>,
  options: CallOptions,
) => unknown;

/**
 * The counter at which members of the network get what a home of the committee does for itself. Who asks is proved by the channel; here it
 * is made sure that everybody only asks for himself.
 */
export class Desk {
  readonly #committee: Committee;
  readonly #office: LedgerOffice;
  readonly #judging = new Map<string, number>();
  readonly #ofMember = new Allowance(OF_MEMBER);
  readonly #ofAll = new Allowance(OF_ALL);

  constructor(lent: { readonly committee: Committee; readonly office: LedgerOffice }) {
    this.#committee = lent.committee;
    this.#office = lent.office;
  }

  /** `identity`: key id of the publisher of the home that asks. Errors: `usage`, and those of the committee and the ledger. */
  async answer(method: DeskMethod, identity: string, body: unknown, options: CallOptions = {}): Promise<Json> {
    const handler = this.#handlers[method] as unknown as Handler<typeof method>;
    return (await handler(identity, decodeRequest(method, body), options)) as Json;
  }

  readonly #handlers: { readonly [M in DeskMethod]: Handler<M> } = {
    'committee/anchor': (identity, { operation, order, newest }) =>
      this.#committee.share(own(identity, operation), order, newest ?? null),
    'committee/reveal': (identity, { challenge, attempt }) =>
      this.#committee.reveal(ownChallenge(identity, challenge), attempt),
    'committee/opening': (identity, { challenge, attempt, revealed, root, labels, path }) =>
      this.#committee.receive(ownChallenge(identity, challenge), { attempt, revealed, root }, { labels, path }),
    'committee/statement': (identity, { challenge }) => this.#committee.certifyStake(ownChallenge(identity, challenge)),
    'committee/vote': (identity, { proofs, order, fast }, options) => {
      ownChallenge(identity, decodeProofSet(proofs).challenge);
      return this.#oneOfFew(
        identity,
        async () => (await this.#committee.vote(proofs, order, { ...options, fast })).vote,
      );
    },
    'committee/confirm': async (identity, { certificate }) => {
      await this.#committee.confirm(identity, certificate);
      return {};
    },
    'committee/account': (identity) => this.#office.account(identity),
    'committee/name': async (_identity, { name }) => ({ owner: await this.#office.ownerOf(name) }),
    'committee/entry': async (identity, { entry }, options) => {
      const submit = () => this.#office.submit(entry, options);
      await this.#ofMember.take(identity, entry.length, () => this.#ofAll.take('', entry.length, submit));
      return {};
    },
    'committee/register': (identity, { roots }) => {
      const registry = this.#committee.registry(identity);
      return { nonce: registry.registered() === roots.at(-1) ? null : registry.begin(roots) };
    },
    'committee/registration': async (identity, registration) => {
      await this.#committee.registry(identity).finish(registration);
      return {};
    },
    'committee/introduce': async (identity, { root, words }) => {
      await this.#committee.introduce(identity, root, words);
      return {};
    },
    'committee/standing': (identity) => this.#committee.standing(identity),
  };

  async #oneOfFew<T>(identity: string, work: () => Promise<T>): Promise<T> {
    const running = this.#judging.get(identity) ?? 0;
    if (running >= SUBMISSIONS_EACH_MAX) {
      throw new HyperMeshError('quota-exceeded', `${running} submissions of this identity are being judged.`, {
        hint: 'Try again in a moment.',
      });
    }
    this.#judging.set(identity, running + 1);
    try {
      return await work();
    } finally {
      const left = this.#judging.get(identity)! - 1;
      if (left === 0) this.#judging.delete(identity);
      else this.#judging.set(identity, left);
    }
  }
}

/** The methods that the desk answers; logs and certificates are others' business. */
export type DeskMethod = Exclude<
  CommitteeMethod,
  'committee/log' | 'committee/log-head' | 'committee/log-consistency' | `network/${string}`
>;

/** Errors: `not-permitted`. */
function own(identity: string, operation: Operation): Operation {
  if (operation.identity === identity) return operation;
  throw new HyperMeshError('not-permitted', 'The operation is of another identity than the one that asks.');
}

/** Errors: `not-permitted`. */
function ownChallenge(identity: string, challenge: Challenge): Challenge {
  own(identity, challenge.operation);
  return challenge;
}
