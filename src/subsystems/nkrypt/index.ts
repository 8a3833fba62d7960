export { checkEndorsement, type NKrypt, type NKryptOptions, openConsensus } from './consensus.ts';
export { judge } from './judge.ts';
