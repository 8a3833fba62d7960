import { randomBytes } from 'node:crypto';
import { hex } from '../base/bytes.ts';
import type { Clock } from '../base/clock.ts';
import { HyperMeshError } from '../base/errors.ts';
import { checkWork } from '../subsystems/nkrypt/index.ts';
import { originOf } from '../subsystems/stoq/index.ts';
import { type OpenedRequest, openJoinContext } from '../wire/certification.ts';
import type { NetworkTerms, OpenTerms } from '../wire/terms.ts';

/** A challenge is given for so long, and good for twice that. */
const CHALLENGE_MS = 300_000;

/** What the founder of an open network asks before it looks at who comes: cheap to check, and nothing is remembered of who is refused. */
export class OpenDoor {
  readonly #clock: Clock;
  #given: { readonly challenge: string; readonly atMs: number } | undefined;
  #before: string | undefined;

  constructor(clock: Clock) {
    this.#clock = clock;
  }

  /** Nobody knows it earlier, so nobody works ahead. */
  challenge(): string {
    const nowMs = this.#clock.nowMs();
    const ageMs = nowMs - (this.#given?.atMs ?? Number.NEGATIVE_INFINITY);
    if (this.#given === undefined || ageMs >= CHALLENGE_MS) {
      this.#before = ageMs < 2 * CHALLENGE_MS ? this.#given?.challenge : undefined;
      this.#given = { challenge: hex(randomBytes(32)), atMs: nowMs };
    }
    return this.#given.challenge;
  }

  /** The bounds for who asks from `address` (`host:port`). Errors: `network-closed`, `proof-expired`, `proof-rejected`. */
  enter(
    terms: NetworkTerms | null,
    { open, payload }: OpenedRequest,
    address: string,
  ): Omit<OpenTerms, 'workHexDigits'> & { readonly origin: string } {
    const { workHexDigits, ...bounds } = openOr(terms);
    const { challenge, work } = open!;
    if (challenge !== this.challenge() && challenge !== this.#before) {
      throw new HyperMeshError('proof-expired', 'The challenge that the request is bound to is not good any more.', {
        hint: 'Run the same command again.',
      });
    }
    const wrong = checkWork(openJoinContext(challenge, payload), workHexDigits, work);
    if (wrong !== undefined) {
      throw new HyperMeshError('proof-rejected', `The work for joining was refused: ${wrong}.`, {
        details: { proof: 'work' },
      });
    }
    return { ...bounds, origin: originOf(/^\[?(.*?)\]?:\d+$/.exec(address)?.[1]) };
  }
}

/** Errors: `network-closed`. */
export function openOr(terms: NetworkTerms | null): OpenTerms {
  if (terms !== null && terms.open !== null) return terms.open;
  throw new HyperMeshError('network-closed', 'This network takes in nobody without an invite.', {
    hint: 'Ask the founder for one: `hypermesh network invite`',
  });
}
