import { HyperMeshError, isCoded } from '../../base/errors.ts';
import type { Json } from '../../base/json.ts';
import type { Trust } from '../../capabilities/trust.ts';
import { decodeGenesis, type Genesis } from '../../wire/genesis.ts';
import { decodeEndorsement, type Endorsement, type FastEndorsement, VOTE_TYPE, voteOf } from '../../wire/proof.ts';
import type { TrustAnchor } from '../../wire/signature.ts';
import { checkWords } from './attest.ts';
import { checkRoot } from './judge.ts';

/** Whose votes make a certificate. */
interface Law {
  readonly genesis: Genesis;
  readonly networkId: string;
}

/** Needs nothing but its arguments. Errors: `endorsement-invalid`. */
export async function checkEndorsement(
  trust: Pick<Trust, 'attested'>,
  value: unknown,
  { genesis: document, anchor }: { readonly genesis: Json; readonly anchor: TrustAnchor },
): Promise<void> {
  const endorsement = decodeEndorsement(value);
  await refusing(async () => {
    const law = decodeGenesis(document);
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
  { genesis, networkId }: Law,
): Promise<void> {
  if (certificate.networkId !== networkId) throw new Error('it belongs to another network');
  if (certificate.epoch !== genesis.committee.epoch) throw new Error('it names another committee');
  const words = certificate.votes.map(({ atMs, attestation }) => ({
    attestation,
    statement: voteOf(certificate, atMs),
  }));
  await checkWords(words, { trust, validators: genesis.committee.validators, payloadType: VOTE_TYPE });
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
