export { signatureCheck, wordHolds } from './attester.ts';
export { ChainCache } from './chain-cache.ts';
export type { NetworkAuthority } from './following.ts';
export type { StoredMembership } from './network-notes.ts';
export { verifyEnvelope } from './offline.ts';
export type { TrustLimits, TrustOptions } from './options.ts';
export { changePassphrase, type PassphraseChange } from './passphrase.ts';
export { openTrust, type TrustChain } from './trust.ts';
export type { VerifyOptions } from './verify.ts';
