/**
 * Standing: the committee's word that a space commitment is registered and was not lost, so that any node can believe an opening of it
 * without having seen the registration (docs/protocol/access.md).
 */
import { readFile, rename, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { z } from 'zod';
import type { Clock } from '../../base/clock.ts';
import type { Digest } from '../../base/digest.ts';
import { HyperMeshError, isCoded, storageError } from '../../base/errors.ts';
import type { Trust } from '../../capabilities/trust.ts';
import { SPACE_STANDING_TYPE, type SpaceStanding, type StandingWord, standingWord } from '../../wire/access.ts';
import type { Committee } from '../../wire/epoch.ts';
import { digest } from '../../wire/fields.ts';
import { checkWords } from './attest.ts';
import type { Law } from './epoch-law.ts';

/** For how long the committee is believed; as long as its revocation lists are. */
const GOOD_MS = 7 * 86_400_000;
/** A home asks for a new one after this long. */
const RENEW_MS = GOOD_MS / 4;
const KNOWN_MAX = 10_000;

type StandingTerms = Pick<Law, 'genesis' | 'networkId' | 'committee'>;

/** Checks standings, each once. */
export class Standings {
  readonly #trust: Pick<Trust, 'attested'>;
  readonly #clock: Clock;
  readonly #terms: StandingTerms;
  readonly #before: Committee | undefined;
  /** `identity root` -> until when it is believed. */
  readonly #known = new Map<string, number>();

  constructor(
    trust: Pick<Trust, 'attested'>,
    options: StandingTerms & {
      readonly clock: Clock;
      /** The committee before the present one, whose word counts as well: who asks, and who is asked, need not learn at one moment who follows. */
      readonly before?: Committee | undefined;
    },
  ) {
    this.#trust = trust;
    this.#clock = options.clock;
    this.#terms = options;
    this.#before = options.before;
  }

  /** Errors: `proof-rejected`, with what is wrong. */
  async check(identity: string, root: string, words: readonly StandingWord[]): Promise<void> {
    const nowMs = this.#clock.nowMs();
    const key = `${identity} ${root}`;
    if ((this.#known.get(key) ?? 0) > nowMs) return;
    const oldest = Math.min(...words.map(({ atMs }) => atMs));
    try {
      await this.#checkWords(this.#terms.committee, identity, root, words).catch(async (error: unknown) => {
        if (this.#before === undefined) throw error;
        await this.#checkWords(this.#before, identity, root, words);
      });
      for (const { atMs } of words) {
        if (atMs > nowMs + this.#terms.genesis.limits.clockSkewMs) throw new Error('it is from the future');
        if (atMs < nowMs - GOOD_MS) throw new Error('it has expired');
      }
    } catch (error) {
      throw new HyperMeshError(
        'proof-rejected',
        `The committee does not stand for this space commitment: ${(error as Error).message}.`,
        { details: { proof: 'space' }, cause: error },
      );
    }
    if (this.#known.size >= KNOWN_MAX) this.#known.delete(this.#known.keys().next().value!);
    this.#known.set(key, oldest + GOOD_MS);
  }

  async #checkWords(
    committee: Committee,
    identity: string,
    root: string,
    words: readonly StandingWord[],
  ): Promise<void> {
    const said = words.map(({ attestation, atMs }) => ({
      attestation,
      statement: standingOf({ ...this.#terms, committee }, identity, root, atMs),
    }));
    const { validators } = committee;
    await checkWords(said, { trust: this.#trust, validators, payloadType: SPACE_STANDING_TYPE });
  }
}

/** What a validator says about a commitment that is registered with it. */
export function standingOf(
  { genesis, networkId, committee }: StandingTerms,
  identity: string,
  root: string,
  atMs: number,
): SpaceStanding {
  return { networkId, committee: committee.digest, identity, root, bytes: genesis.space.bytes, atMs };
}

/** The word of this home's validator. */
export async function standFor(
  trust: Pick<Trust, 'attest'>,
  terms: StandingTerms & { readonly clock: Clock },
  identity: string,
  root: string,
): Promise<StandingWord> {
  const atMs = terms.clock.nowMs();
  const statement = standingOf(terms, identity, root, atMs);
  return { atMs, attestation: await trust.attest(SPACE_STANDING_TYPE, statement) };
}

const kept = z.strictObject({ committee: digest, root: z.string(), words: z.array(standingWord) });

/** This home's standing, in a file beside the commitment: losing it costs one more question. */
export class OwnStanding {
  readonly #ask: (root: string) => Promise<readonly StandingWord[]>;
  readonly #file: string;
  readonly #clock: Clock;
  /** Whose word is believed: first who is in office. */
  readonly #committees: readonly Digest[];
  #kept: z.output<typeof kept> | null | undefined;

  /** `ask` gets it from the committee. */
  constructor(
    ask: (root: string) => Promise<readonly StandingWord[]>,
    options: {
      readonly directory: string;
      readonly clock: Clock;
      readonly committee: Committee;
      readonly before: Committee | undefined;
    },
  ) {
    this.#ask = ask;
    this.#committees = [options.committee, options.before].flatMap((one) => one?.digest ?? []);
    this.#file = join(options.directory, 'standing.json');
    this.#clock = options.clock;
  }

  /** Of the commitment with that root; a new one in time, the old one as long as it is good and nobody can be asked. Errors: those of the committee. */
  async words(root: string): Promise<readonly StandingWord[]> {
    this.#kept ??= await this.#read();
    const nowMs = this.#clock.nowMs();
    const isKept = this.#kept?.root === root && this.#committees.includes(this.#kept.committee);
    const known = isKept ? this.#kept!.words : [];
    const ageMs = nowMs - Math.min(...known.map(({ atMs }) => atMs));
    if (known.length > 0 && ageMs >= 0 && ageMs < RENEW_MS) return known;
    try {
      const words = await this.#ask(root);
      this.#kept = { committee: this.#committees[0]!, root, words: [...words] };
      await this.#write(this.#kept);
      return words;
    } catch (error) {
      if (known.length > 0 && ageMs < GOOD_MS && isCoded(error, 'committee-unreachable')) return known;
      throw error;
    }
  }

  async #write(standing: z.output<typeof kept>): Promise<void> {
    try {
      await writeFile(`${this.#file}.new`, JSON.stringify(standing), { mode: 0o600 });
      await rename(`${this.#file}.new`, this.#file);
    } catch (error) {
      throw storageError(error, `writing ${this.#file}`);
    }
  }

  async #read(): Promise<z.output<typeof kept> | null> {
    try {
      return kept.parse(JSON.parse(await readFile(this.#file, 'utf8')));
    } catch {
      return null;
    }
  }
}
