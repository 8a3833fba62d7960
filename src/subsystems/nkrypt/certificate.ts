import { HyperMeshError, isCoded } from '../../base/errors.ts';
import type { Json } from '../../base/json.ts';
import type { Trust } from '../../capabilities/trust.ts';
import type { EpochDocument } from '../../wire/epoch.ts';
import { quorumOf } from '../../wire/genesis.ts';
import { decodeEndorsement, type Endorsement, type FastEndorsement, VOTE_TYPE, voteOf } from '../../wire/proof.ts';
import type { TrustAnchor } from '../../wire/signature.ts';
import { checkWords } from './attest.ts';
import type { Law, LawBook } from './epoch-law.ts';
import { checkRoot } from './judge.ts';

/** Needs nothing but its arguments. Errors: `endorsement-invalid`. */
export async function checkEndorsement(
  laws: LawBook,
  value: unknown,
  {
    genesis: document,
    anchor,
    epochs = [],
  }: { readonly genesis: Json; readonly anchor: TrustAnchor; readonly epochs?: readonly EpochDocument[] | undefined },
): Promise<void> {
  const endorsement = decodeEndorsement(value);
  await refusing(async () => {
    const law = await laws.of(document, epochs, endorsement.committee);
    checkRoot(law.genesis, anchor);
    await checkVotes(laws.trust, endorsement, law);
  });
}

/** A certificate as another validator or the publisher sends it. Errors: `endorsement-invalid`. */
export async function checkedCertificate(
  trust: Pick<Trust, 'attested'>,
  value: unknown,
  law: Law,
): Promise<Endorsement> {
  const certificate = decodeEndorsement(value);
  await refusing(async () => {
    await checkVotes(trust, certificate, law);
  });
  return certificate;
}

/** Votes for one operation, also when they are too few for a certificate. Errors: `endorsement-invalid`. */
export async function checkedBallot(
  trust: Pick<Trust, 'attested'>,
  value: unknown,
  law: Law,
): Promise<{ readonly ballot: Endorsement; readonly isCertificate: boolean }> {
  const ballot = decodeEndorsement(value);
  let needed = 0;
  await refusing(async () => {
    needed = await checkVotes(trust, ballot, law, 1);
  });
  return { ballot, isCertificate: ballot.votes.length >= needed };
}

/** Votes of both algorithms, or fast ones; resolves to how many make a certificate. Throws an Error that says what is wrong. */
async function checkVotes(
  trust: Pick<Trust, 'attested'>,
  certificate: FastEndorsement,
  { networkId, committee: present, committeeOf }: Law,
  votesMin?: number,
): Promise<number> {
  if (certificate.networkId !== networkId) throw new Error('it belongs to another network');
  const { committee: named } = certificate;
  const committee = named === present.digest ? present : committeeOf?.(named);
  if (committee === undefined) throw new Error('it names another committee');
  const words = certificate.votes.map(({ atMs, attestation }) => ({
    attestation,
    statement: voteOf(certificate, atMs),
  }));
  const { validators } = committee;
  const needed = quorumOf(validators.length);
  await checkWords(words, { trust, validators, payloadType: VOTE_TYPE, needed: votesMin ?? needed });
  return needed;
}

async function refusing(check: () => Promise<void>): Promise<void> {
  try {
    await check();
  } catch (error) {
    const why = isCoded(error) ? error.message : `${(error as Error).message}.`;
    throw new HyperMeshError('endorsement-invalid', `The endorsement is not the word of the committee: ${why}`, {
      hint: 'The content was altered, or comes from another network.',
      cause: error,
    });
  }
}
