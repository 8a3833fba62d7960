/** What taking part in a network is made of; loaded when the home enters one. */
export { openChannel } from './channel/index.ts';
export { Coded } from './coded/coded.ts';
export { bulkSource, contentMethods, Downloader, Outgoing, Shaper, sourceOf } from './content/index.ts';
export { Directory } from './overlay/directory.ts';
export { Liveness } from './overlay/liveness.ts';
export { findNeighbours } from './overlay/neighbours.ts';
export { CodingCollection } from './records/codings.ts';
export { RecordExchange } from './records/exchange.ts';
export { SyncRounds } from './records/rounds.ts';
export { Replication } from './replication.ts';
