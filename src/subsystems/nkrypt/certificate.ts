import { HyperMeshError, isCoded } from '../../base/errors.ts';
import type { Json } from '../../base/json.ts';
import type { Trust } from '../../capabilities/trust.ts';
import type { EpochDocument } from '../../wire/epoch.ts';
import { decodeEndorsement, type Endorsement, type FastEndorsement, VOTE_TYPE, voteOf } from '../../wire/proof.ts';
import type { TrustAnchor } from '../../wire/signature.ts';
import { checkWords } from './attest.ts';
import { type Law, lawOf } from './epoch-law.ts';
import { checkRoot } from './judge.ts';

/** Needs nothing but its arguments. Errors: `endorsement-invalid`. */
export async function checkEndorsement(
  trust: Pick<Trust, 'attested'>,
  value: unknown,
  {
    genesis: document,
    anchor,
    epochs = [],
  }: { readonly genesis: Json; readonly anchor: TrustAnchor; readonly epochs?: readonly EpochDocument[] | undefined },
): Promise<void> {
  const endorsement = decodeEndorsement(value);
  await refusing(async () => {
    const law = await lawOf(trust, document, epochs, endorsement.epoch);
    checkRoot(law.genesis, anchor);
    await checkVotes(trust, endorsement, law);
  });
}

/** A certificate as another validator or the publisher sends it. Errors: `endorsement-invalid`. */
export async function checkedCertificate(
  trust: Pick<Trust, 'attested'>,
  value: unknown,
  law: Law,
): Promise<Endorsement> {
  const certificate = decodeEndorsement(value);
  await refusing(() => checkVotes(trust, certificate, law));
  return certificate;
}

/** Votes of both algorithms, or fast ones. Throws an Error that says what is wrong. */
async function checkVotes(
  trust: Pick<Trust, 'attested'>,
  certificate: FastEndorsement,
  { genesis, networkId, committeeOf }: Law,
): Promise<void> {
  if (certificate.networkId !== networkId) throw new Error('it belongs to another network');
  const { epoch } = certificate;
  const committee = epoch === genesis.committee.epoch ? genesis.committee : committeeOf?.(epoch);
  if (committee === undefined) throw new Error('it names another committee');
  const words = certificate.votes.map(({ atMs, attestation }) => ({
    attestation,
    statement: voteOf(certificate, atMs),
  }));
  await checkWords(words, { trust, validators: committee.validators, payloadType: VOTE_TYPE });
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
