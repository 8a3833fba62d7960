export { checkEndorsement, type NKrypt, type NKryptOptions, openConsensus } from './consensus.ts';
export { DEFAULT_REQUIREMENTS, type NetworkTerms } from './found.ts';
export { judge } from './judge.ts';
