import type { Digest } from '../base/digest.ts';
import { HyperMeshError } from '../base/errors.ts';
import type { NKrypt } from '../subsystems/nkrypt/index.ts';
import type { TermsRecord } from '../subsystems/stoq/index.ts';
import type { TrustChain } from '../subsystems/trustchain/index.ts';
import { decodeGenesis, type Genesis } from '../wire/genesis.ts';
import {
  checkBelongs,
  decodeTerms,
  decodeTermsAnswer,
  encodeTerms,
  type SignedTerms,
  supersedes,
  TERMS_TYPE,
  type TermsAnswer,
} from '../wire/terms.ts';

/** The terms of the network that this home is in, as nodes hand them to each other. */
export function termsRecord({
  trust,
  consensus,
}: {
  readonly trust: TrustChain;
  readonly consensus: NKrypt;
}): TermsRecord {
  return {
    read() {
      const signed = trust.terms();
      return signed === null ? null : encodeTerms(signed);
    },
    async take(bytes) {
      const { document, networkId } = await consensus.genesis();
      const { genesis } = decodeGenesis(document);
      const signed = decodeTerms(bytes);
      checkBelongs(signed, networkId, genesis);
      await checkSigned(trust, signed, genesis);
      if (supersedes(signed, trust.terms())) trust.keepTerms(signed);
    },
  };
}

/** What a node of the network answered about its terms. Errors: `network-mismatch`, `certification-invalid`. */
export async function checkedTerms(trust: TrustChain, value: unknown, networkId: Digest): Promise<TermsAnswer> {
  const { founding, ...answer } = decodeTermsAnswer(value, networkId);
  if (answer.signed !== null) await checkSigned(trust, answer.signed, founding);
  return answer;
}

/** Errors: `certification-invalid`. */
async function checkSigned(trust: TrustChain, { terms, attestation }: SignedTerms, founding: Genesis): Promise<void> {
  const keys = founding.committee.validators.find(({ key }) => key === attestation.validator)!;
  if (await trust.attested(attestation, TERMS_TYPE, terms, keys)) return;
  throw new HyperMeshError('certification-invalid', 'The founder of the network did not sign these terms.');
}
