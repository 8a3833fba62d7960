import { z } from 'zod';
import type { Clock } from '../base/clock.ts';
import { isCoded } from '../base/errors.ts';
import type { Json } from '../base/json.ts';
import type { NKrypt } from '../subsystems/nkrypt/index.ts';
import type { NetworkAuthority, TrustChain } from '../subsystems/trustchain/index.ts';
import { CERTIFICATION_LIMITS, committeeSeat } from '../wire/certification.ts';
import { hex32 } from '../wire/fields.ts';
import { type LogInclusion, logInclusion, signedTreeHead, trustAnchor } from '../wire/signature.ts';
import { firstAnswer } from './first-answer.ts';
import { checkedCertification } from './joining.ts';
import { isUnreachable, type Seats, senseless } from './seats.ts';

/** Who keeps a log and says nothing for so long is not waited for alone; and comes last for a while. */
const LOG_PATIENCE_MS = 1_000;
const LOG_SHUNNED_MS = 60_000;

const news = z.strictObject({
  anchor: trustAnchor,
  committee: z.array(committeeSeat).max(CERTIFICATION_LIMITS.committeeMax),
  epochs: z.array(z.unknown()).max(1_000),
});
const consistency = z.strictObject({ path: z.array(hex32).max(64) });

interface AuthorityLent {
  readonly trust: TrustChain;
  readonly consensus: NKrypt;
  readonly clock: Clock;
}

/** The committee of a member, as the one who renews its certificates, says what was revoked, and keeps the log. */
export class CommitteeAuthority implements NetworkAuthority {
  readonly #lent: AuthorityLent;
  readonly #seats: Seats;
  /** Whose log is asked last until then. */
  #founderShunnedUntilMs = 0;

  constructor(lent: AuthorityLent, seats: Seats) {
    this.#lent = lent;
    this.#seats = seats;
  }

  news: NetworkAuthority['news'] = async () => {
    const parsed = news.safeParse(await this.#seats.askAsGuest('network/news', async () => ({})));
    if (!parsed.success) throw senseless();
    await this.#lent.consensus.learnEpochs(parsed.data.epochs);
    return parsed.data;
  };

  renew: NetworkAuthority['renew'] = async (request) => {
    const answer = await this.#seats.askAsGuest('network/renew', (asked) => request(asked));
    return checkedCertification(this.#lent, answer, this.#lent.trust.membership()!.networkId);
  };

  logHead: NetworkAuthority['logHead'] = () => this.#checked(signedTreeHead, 'committee/log-head', {});

  logConsistency: NetworkAuthority['logConsistency'] = async (from, to) =>
    (await this.#checked(consistency, 'committee/log-consistency', { from, to })).path;

  /**
   * In the log of the founder; while that is away, or says nothing, in that of another validator of the committee that admitted it: of this home if it has a
   * seat. Who hangs is there for the network, so nobody waits until it is known to be gone.
   */
  async logAppend(leaf: Uint8Array, certificate: Json): Promise<LogInclusion> {
    const { consensus, trust } = this.#lent;
    const { digest, validators } = await consensus.committee();
    const own = trust.keyIds().validator;
    const read = (answer: unknown) => {
      const parsed = logInclusion.safeParse(answer);
      if (parsed.success) return parsed.data;
      throw senseless();
    };
    let refusal: unknown;
    const founders = async (signal: AbortSignal) => {
      const beganMs = performance.now();
      try {
        return read(await this.#seats.ask('committee/log', { certificate }, { signal }));
      } catch (error) {
        if (!isUnreachable(error)) refusal = error;
        throw error;
      } finally {
        if (performance.now() - beganMs > LOG_PATIENCE_MS)
          this.#founderShunnedUntilMs = performance.now() + LOG_SHUNNED_MS;
      }
    };
    const isOfOthers = (certificate as { committee?: unknown }).committee !== digest;
    const known = new Set(trust.membership()?.committee.map(({ validator }) => validator));
    const others = validators
      .filter(({ key }) => !isOfOthers && !known.has(key))
      .sort((a, b) => Number(b.key === own) - Number(a.key === own))
      .map(({ key }) => async (signal: AbortSignal) => {
        if (key === own) return trust.logHere(leaf);
        return read(await this.#seats.askSeat(key, 'committee/log', { certificate }, { signal }));
      });
    const isShunned = performance.now() < this.#founderShunnedUntilMs;
    return firstAnswer(isShunned ? [...others, founders] : [founders, ...others], {
      patienceMs: LOG_PATIENCE_MS,
      isFinal: (error) => error === refusal || !isCoded(error),
    });
  }

  async #checked<T>(schema: z.ZodType<T>, method: string, body: Json): Promise<T> {
    const parsed = schema.safeParse(await this.#seats.ask(method, body));
    if (parsed.success) return parsed.data;
    throw senseless();
  }
}
