import { base64, concat, utf8 } from '../base/bytes.ts';
import { sha256 } from '../base/digest.ts';
import { canonicalJson } from '../base/json.ts';
import { generateEd25519, signEd25519, verifyEd25519 } from '../subsystems/trustchain/ed25519.ts';
import { createFalcon, falconVerifier } from '../subsystems/trustchain/falcon.ts';
import type { Attestation } from '../wire/attestation.ts';
import type { KeyText } from '../wire/entry.ts';
import type { Holds } from '../wire/epoch.ts';
import { keyIdOf, type PublicKeys } from '../wire/key-id.ts';
import { type Envelope, openEnvelope, pae, sealEnvelope } from '../wire/signature.ts';

const BATCH_TYPE = 'application/vnd.hypermesh.batch.v1';

/** Somebody with both keys, without a home around them: signs as publishers and as validators do. */
export interface Signer {
  readonly keyId: string;
  readonly keys: KeyText;
  seal(type: string, payload: Uint8Array): Envelope;
  /** A batch of one. */
  attest(type: string, statement: unknown): Attestation;
}

export function makeSigner(): Signer {
  const falcon = createFalcon();
  const [secret, edwards] = [falcon.generate(), generateEd25519()];
  const keyId = keyIdOf({ falcon: secret.publicKey, ed25519: edwards.publicKey });
  return {
    keyId,
    keys: { falcon: base64(secret.publicKey), ed25519: base64(edwards.publicKey) },
    seal: (type, payload) => {
      const signed = pae(type, payload);
      return sealEnvelope(type, payload, keyId, {
        falcon: falcon.sign(signed, secret.secretKey),
        ed25519: signEd25519(signed, edwards.seed),
      });
    },
    attest: (type, statement) => {
      const signed = pae(type, utf8(canonicalJson(statement)));
      return {
        validator: keyId,
        ed25519: base64(signEd25519(signed, edwards.seed)),
        falcon: base64(falcon.sign(batchOfOne(signed), secret.secretKey)),
        path: [],
        index: 0,
        size: 1,
      };
    },
  };
}

/** Judges what {@link Signer.attest} made. */
export const batchOfOneHolds: Holds = (attestation, type, statement, keys) => {
  const signed = pae(type, utf8(canonicalJson(statement)));
  return (
    attestation.size === 1 &&
    verifyEd25519(Uint8Array.fromBase64(attestation.ed25519), signed, keys.ed25519) &&
    falconVerifier().verify(Uint8Array.fromBase64(attestation.falcon), batchOfOne(signed), keys.falcon)
  );
};

export function envelopeHolds(envelope: Envelope, keys: PublicKeys): boolean {
  const { signed, falcon, ed25519 } = openEnvelope(envelope);
  return verifyEd25519(ed25519, signed, keys.ed25519) && falconVerifier().verify(falcon, signed, keys.falcon);
}

function batchOfOne(signed: Uint8Array): Uint8Array {
  return pae(BATCH_TYPE, sha256(concat(Uint8Array.of(0), signed)));
}
