import { falcon1024padded } from '@noble/post-quantum/falcon.js';
import { checkSecretKey, type FalconProvider, isCanonicalSignature } from './falcon.ts';

/**
 * A second, independent implementation in plain JavaScript: the differential check of the first. It makes no constant-time claim
 * and verifies ten times slower, so production never signs with it.
 */
export function createNobleFalcon(): FalconProvider {
  return {
    generate: () => falcon1024padded.keygen(),
    sign(message, secretKey) {
      checkSecretKey(secretKey);
      return falcon1024padded.sign(message, secretKey);
    },
    verify(signature, message, publicKey) {
      if (!isCanonicalSignature(signature, publicKey)) return false;
      try {
        return falcon1024padded.verify(signature, message, publicKey);
      } catch {
        // It throws on encodings that are not signatures at all.
        return false;
      }
    },
  };
}
