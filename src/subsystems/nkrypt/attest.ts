import type { Trust } from '../../capabilities/trust.ts';
import type { Attestation, FastAttestation, ValidatorKeys } from '../../wire/attestation.ts';
import { GENESIS_TYPE, type Genesis, quorumOf } from '../../wire/genesis.ts';

/** One validator's word about a statement that who reads it made himself. */
interface Word {
  readonly attestation: FastAttestation | Attestation;
  readonly statement: unknown;
}

/**
 * Checks that a quorum of distinct members of the committee signed, each its own statement of one type. Strict: one bad word spoils the set, so that
 * there is one way to write it. Throws an Error that says what is wrong.
 */
export async function checkWords(
  words: readonly Word[],
  by: {
    readonly trust: Pick<Trust, 'attested'>;
    readonly validators: readonly ValidatorKeys[];
    readonly payloadType: string;
    /** Default: a quorum. */
    readonly needed?: number;
  },
): Promise<void> {
  const { validators, needed = quorumOf(validators.length) } = by;
  if (words.length < needed || words.length > validators.length) {
    throw new Error(`${needed} of ${validators.length} validators must sign, not ${words.length}`);
  }
  const members = new Map(validators.map((keys) => [keys.key, keys]));
  for (const { attestation, statement } of words) {
    const keys = members.get(attestation.validator);
    if (keys === undefined || !members.delete(attestation.validator))
      throw new Error('a signer is not in the committee or signed twice');
    if (!(await by.trust.attested(attestation, by.payloadType, statement, keys)))
      throw new Error('a signature does not match what was signed and the key of the validator');
  }
}

/** Whether every validator that the document names approved it. Who pinned the network id knows already. */
export async function isApproved(
  { approvals, ...document }: Genesis,
  trust: Pick<Trust, 'attested'>,
): Promise<boolean> {
  const { validators } = document.committee;
  const words = validators.map((keys, i) => trust.attested(approvals[i]!, GENESIS_TYPE, document, keys));
  return (await Promise.all(words)).every((holds) => holds);
}
