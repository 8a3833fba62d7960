export { originOf } from './channel/address.ts';
export type { Method, RemoteNode, RequestOptions } from './channel/index.ts';
export type { Pace, StoqLimits } from './options.ts';
export type { TermsRecord } from './records/terms.ts';
export { openTransport } from './transport.ts';
