export { ChainCache } from './chain-cache.ts';
export { type VerifyOptions, verifyEnvelope } from './offline.ts';
export { openTrust, type TrustChain, type TrustLimits, type TrustOptions } from './trust.ts';
