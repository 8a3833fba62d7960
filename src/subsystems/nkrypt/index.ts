export { checkEndorsement } from './certificate.ts';
export { openConsensus } from './consensus.ts';
export { LawBook } from './epoch-law.ts';
export { judge } from './judge.ts';
export type { NKrypt, NKryptOptions } from './nkrypt.ts';
export { checkWork } from './work.ts';
