import { constants, createPublicKey, publicEncrypt } from 'node:crypto';
import { N, STEP, toBytes } from '../src/subsystems/nkrypt/rsa-group.ts';

/** So many squarings by OpenSSL, and nothing around them. */
export function squarer(): (squarings: number) => Promise<void> {
  const key = rsaKey(1n << BigInt(STEP));
  return async (squarings) => {
    let value = toBytes(N / 3n);
    for (let done = 0; done < squarings; done += STEP) {
      value = publicEncrypt({ key, padding: constants.RSA_NO_PADDING }, value);
    }
  };
}

export function rsaKey(exponent: bigint) {
  const digits = exponent.toString(16);
  const e = Buffer.from(digits.padStart(digits.length + (digits.length % 2), '0'), 'hex').toString('base64url');
  return createPublicKey({ key: { kty: 'RSA', n: Buffer.from(toBytes(N)).toString('base64url'), e }, format: 'jwk' });
}
