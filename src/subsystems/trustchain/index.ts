export { signatureCheck, wordHolds } from './attester.ts';
export { ChainCache } from './chain-cache.ts';
export { verifyEnvelope } from './offline.ts';
export { changePassphrase, type PassphraseChange } from './passphrase.ts';
export {
  type NetworkAuthority,
  openTrust,
  type StoredMembership,
  type TrustChain,
  type TrustLimits,
  type TrustOptions,
} from './trust.ts';
export type { VerifyOptions } from './verify.ts';
