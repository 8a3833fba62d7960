export { checkEndorsement } from './certificate.ts';
export { type NKrypt, type NKryptOptions, openConsensus } from './consensus.ts';
export { LawBook } from './epoch-law.ts';
export { judge } from './judge.ts';
export { checkWork } from './work.ts';
