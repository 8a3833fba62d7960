export { type Accusation, Downloader, type DownloadLimits, type DownloadReport } from './download.ts';
export { Outgoing } from './outgoing.ts';
export { bulkSource, type ContentServing, contentMethods } from './serve.ts';
export { Shaper } from './shaper.ts';
export { sourceOf } from './source.ts';
