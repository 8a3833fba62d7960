import { randomBytes } from 'node:crypto';
import { base64 } from '../base/bytes.ts';
import { generateEd25519, signEd25519, verifyEd25519 } from '../subsystems/trustchain/ed25519.ts';
import { createFalcon, type FalconProvider, falconVerifier } from '../subsystems/trustchain/falcon.ts';
import { type Attestation, attestedBytes, batchBytes, type SignatureCheck, sealed } from '../wire/attestation.ts';
import type { KeyText } from '../wire/entry.ts';
import { keyIdOf } from '../wire/key-id.ts';
import { leafHash } from '../wire/log.ts';
import { type Envelope, pae, sealEnvelope } from '../wire/signature.ts';

/** Somebody with both keys, without a home around them: signs as publishers and as validators do. */
export interface Signer {
  readonly keyId: string;
  readonly keys: KeyText;
  seal(type: string, payload: Uint8Array): Envelope;
  /** A batch of one. */
  attest(type: string, statement: unknown): Attestation;
}

export function makeSigner(): Signer {
  return signerOf(createFalcon());
}

/** A hundred times as fast, for rules that many signatures go through: the FALCON half is empty, and {@link quickCheck} does not look at it. */
export function makeQuickSigner(): Signer {
  return signerOf({
    generate: () => ({ publicKey: randomBytes(1793), secretKey: new Uint8Array() }),
    sign: () => new Uint8Array(1280),
  });
}

function signerOf(falcon: Pick<FalconProvider, 'generate' | 'sign'>): Signer {
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
      const signed = attestedBytes(type, statement);
      const word = { validator: keyId, ed25519: base64(signEd25519(signed, edwards.seed)) };
      const root = leafHash(signed);
      return sealed(word, { falcon: falcon.sign(batchBytes(root), secret.secretKey), path: [], index: 0, size: 1 });
    },
  };
}

/** Judges what a {@link makeSigner} signed. */
export const signatureCheck: SignatureCheck = {
  ed25519: verifyEd25519,
  falcon: (...signature) => falconVerifier().verify(...signature),
};

/** Judges what a {@link makeQuickSigner} signed. */
export const quickCheck: SignatureCheck = { ed25519: verifyEd25519, falcon: () => true };
