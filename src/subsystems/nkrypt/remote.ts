import { z } from 'zod';
import { base64 } from '../../base/bytes.ts';
import type { CallOptions } from '../../base/call.ts';
import type { Digest } from '../../base/digest.ts';
import { HyperMeshError, isCoded } from '../../base/errors.ts';
import { canonicalJson, type Json } from '../../base/json.ts';
import type { CommitteeAsk } from '../../capabilities/membership.ts';
import { type StandingWord, standingWord } from '../../wire/access.ts';
import type { CommitteeMethod } from '../../wire/committee.ts';
import type { Genesis } from '../../wire/genesis.ts';
import {
  type Challenge,
  challenge as challengeSchema,
  contextOf,
  decodeEndorsement,
  type Endorsement,
  type OperationKind,
  PROOF_LIMITS,
  type ProofSet,
  proofsDigest,
  type SpaceProof,
  type StakeProof,
  spaceProof,
  stakeProof,
} from '../../wire/proof.ts';
import { firstIssue } from '../../wire/signature.ts';
import type { Opening } from './merkle.ts';
import type { Witness } from './prover.ts';
import type { SpaceRegistry } from './space.ts';

const hex32 = z.string().regex(/^[0-9a-f]{64}$/);
const audit = z.strictObject({ beacon: hex32, root: hex32.nullable() });
const standing = z.strictObject({ words: z.array(standingWord).min(1).max(PROOF_LIMITS.committeeMax) });
const nonce = z.strictObject({ nonce: hex32.nullable() });

/** Judging a proof set takes the committee a moment, more when it is busy. */
const ADMIT_TIMEOUT_MS = 120_000;

/**
 * The committee as a home without a seat in it sees it. Nothing is taken on trust that can be checked: a challenge has to be the one that was
 * asked for; proofs and votes carry signatures that whoever judges them checks.
 * Errors of all: `committee-unreachable`, what the committee refuses with, and `proof-invalid` for an answer that makes no sense.
 */
export class RemoteCommittee implements Witness {
  readonly #ask: CommitteeAsk;
  readonly #network: { readonly genesis: Genesis; readonly networkId: Digest; readonly identity: string };
  /** Called when the committee does not know the commitment that this home took for registered. */
  readonly #forgotten: () => void;

  constructor(
    ask: CommitteeAsk,
    network: { readonly genesis: Genesis; readonly networkId: Digest; readonly identity: string },
    forgotten: () => void,
  ) {
    this.#ask = ask;
    this.#network = network;
    this.#forgotten = forgotten;
  }

  async challenge(kind: OperationKind, subject: Digest, ref: string): Promise<Challenge> {
    const { genesis, networkId, identity } = this.#network;
    const issued = await this.#answer('committee/challenge', { kind, subject, ref }, challengeSchema);
    const { sequence: _sequence, ...operation } = issued.operation;
    const isAsked =
      canonicalJson(operation) === canonicalJson({ kind, subject, ref, identity }) &&
      canonicalJson(issued.requirements) === canonicalJson(genesis.requirements[kind]) &&
      issued.networkId === networkId &&
      issued.context === contextOf(issued);
    if (!isAsked) throw senseless('its challenge is for something else');
    return issued;
  }

  async beginAudit(challenge: Challenge): Promise<{ readonly beacon: string }> {
    const { beacon, root } = await this.#answer('committee/audit', { challenge }, audit);
    if (root === null) {
      this.#forgotten();
      throw new HyperMeshError('space-unavailable', 'The committee does not know the space commitment of this home.', {
        hint: 'It is registered again; the next attempt waits for it.',
      });
    }
    return { beacon };
  }

  finishAudit(challenge: Challenge, root: string, { labels, path }: Opening): Promise<SpaceProof> {
    const body = { challenge, root, labels: base64(labels), path: base64(path) };
    return this.#answer('committee/opening', body, spaceProof);
  }

  certifyStake(challenge: Challenge): Promise<StakeProof> {
    return this.#answer('committee/statement', { challenge }, stakeProof);
  }

  /** The endorsement is about these proofs; whether its votes hold is the caller's to check. */
  async admit(proofs: ProofSet, options: CallOptions): Promise<Endorsement> {
    const answer = await this.#ask('committee/admit', { proofs } as unknown as Json, {
      ...options,
      timeoutMs: ADMIT_TIMEOUT_MS,
    });
    const endorsement = decodeEndorsement(answer);
    if (
      endorsement.proofs !== proofsDigest(proofs) ||
      canonicalJson(endorsement.operation) !== canonicalJson(proofs.challenge.operation)
    ) {
      throw new HyperMeshError('endorsement-invalid', 'The committee endorsed something else than what was submitted.');
    }
    return endorsement;
  }

  /** Registration with the committee; that it happened is remembered in `memory`, so that a start needs no network. */
  registry(memory: { registered(): string | undefined; remember(roots: readonly string[]): void }): SpaceRegistry {
    return {
      registered: () => memory.registered(),
      begin: async (roots) => {
        const answer = await this.#answer('committee/register', { roots }, nonce);
        if (answer.nonce === null) memory.remember(roots);
        return answer.nonce;
      },
      finish: async (registration) => {
        const layers = registration.layers.map(({ labels, path }) => ({ labels: base64(labels), path: base64(path) }));
        await this.#answer('committee/registration', { ...registration, layers }, z.strictObject({}));
        memory.remember(registration.roots);
      },
    };
  }

  /** The committee's word for the space commitment of this home. */
  async standing(): Promise<readonly StandingWord[]> {
    try {
      return (await this.#answer('committee/standing', {}, standing)).words;
    } catch (error) {
      if (isCoded(error, 'space-unavailable')) this.#forgotten();
      throw error;
    }
  }

  async #answer<T>(method: CommitteeMethod, body: unknown, schema: z.ZodType<T>): Promise<T> {
    const parsed = schema.safeParse(await this.#ask(method, body as Json));
    if (parsed.success) return parsed.data;
    throw senseless(firstIssue(parsed.error));
  }
}

function senseless(why: string): HyperMeshError {
  return new HyperMeshError('proof-invalid', `The committee gave an answer that makes no sense: ${why}.`, {
    hint: 'Its machine runs another version of HyperMesh, or is not the committee.',
  });
}
