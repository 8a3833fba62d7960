/** Limits of the formats of proof.ts; apart from it, for threads that prove and read nothing. */
export const PROOF_LIMITS = {
  /** Canonical JSON of a whole proof set. */
  bytesMax: 4 * 2 ** 20,
  committeeMax: 100,
  openingsMax: 256,
  hexDigitsMax: 16,
  squaringsMin: 2 ** 10,
  squaringsMax: 2 ** 28,
  /** One number in 92 is a prime: that none of so many is, does not happen. */
  counterMax: 2 ** 16 - 1,
  windowMsMax: 24 * 3_600_000,
  spaceBytesMax: 2 ** 30,
  tokensMax: 2 ** 50,
} as const;
