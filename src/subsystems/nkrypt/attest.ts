import { fromUtf8, utf8 } from '../../base/bytes.ts';
import { canonicalJson } from '../../base/json.ts';
import type { Trust } from '../../capabilities/trust.ts';
import { type Genesis, quorumOf } from '../../wire/genesis.ts';
import type { Attestation } from '../../wire/proof.ts';
import type { TrustAnchor } from '../../wire/signature.ts';

/** The words that a validator of this home signs. */
export async function attest(
  trust: Pick<Trust, 'identity' | 'sign'>,
  payloadType: string,
  statement: unknown,
): Promise<Attestation> {
  const { keyId, chain } = await trust.identity('validator');
  return {
    validator: keyId,
    chain,
    envelope: await trust.sign('validator', payloadType, utf8(canonicalJson(statement))),
  };
}

/**
 * Checks that a quorum of distinct members of the committee signed, each with its own statement of one type.
 * Strict: one bad attestation spoils the set, so that there is one way to write it. Throws an Error that says what is wrong.
 */
export async function statementsOf(
  attestations: readonly Attestation[],
  by: {
    readonly trust: Pick<Trust, 'verify'>;
    readonly genesis: Genesis;
    readonly anchor: TrustAnchor | undefined;
    readonly atMs: number;
    readonly payloadType: string;
  },
): Promise<readonly unknown[]> {
  const { validators } = by.genesis.committee;
  const members = new Set(validators.map(({ key }) => key));
  if (attestations.length < quorumOf(validators.length) || attestations.length > validators.length) {
    throw new Error(
      `${quorumOf(validators.length)} of ${validators.length} validators must sign, not ${attestations.length}`,
    );
  }
  const statements: unknown[] = [];
  for (const { validator, chain, envelope } of attestations) {
    if (!members.delete(validator)) throw new Error('a signer is not in the committee or signed twice');
    if (envelope.payloadType !== by.payloadType) throw new Error('a signature is about something else');
    const verified = await by.trust.verify(envelope, chain, {
      role: 'validator',
      atMs: by.atMs,
      ...(by.anchor === undefined ? {} : { anchor: by.anchor }),
    });
    if (verified.signer !== validator) throw new Error('a signature is by another key than it says');
    const text = fromUtf8(verified.payload);
    const statement: unknown = JSON.parse(text);
    if (canonicalJson(statement) !== text) throw new Error('a signed statement is not canonical JSON');
    statements.push(statement);
  }
  return statements;
}
