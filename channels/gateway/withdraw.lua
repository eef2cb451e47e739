-- Takes back what was published once: the entry goes from the history, and a publication in its place tells those who
-- have it already. The offset is noted as withdrawn, so that the hole in the history doesn't read as a loss. What has
-- not been published yet can be taken back before: the withdrawal then stands under its key.
-- KEYS: stream, meta, gone, nodes, once (of what was published), withdrawn (the same for the withdrawal)
-- ARGV: channel, data, history size, history ttl (s), dead before (ms), a fresh epoch, bus prefix,
--       1 to take back what was not published yet, too
-- Returns 1; 0 if nothing was published under that key within the history's time.
local stream, meta, gone, nodes, once, withdrawn = unpack(KEYS)
local channel, size, ttl = ARGV[1], tonumber(ARGV[3]), tonumber(ARGV[4])

local published = redis.call('GET', once)
if not published and ARGV[8] ~= '1' then return 0 end

local epoch, offset, data
local before = redis.call('GET', withdrawn)
if before then
  epoch, offset = string.match(before, '^(.*)\n(%d+)$')
  local entry = epoch == redis.call('HGET', meta, 'epoch')
    and redis.call('XRANGE', stream, offset .. '-0', offset .. '-0')[1]
  if not entry then return 1 end
  data = entry[2][2]
else
  local old_epoch, old_offset = string.match(published or '\n0', '^(.*)\n(%d+)$')
  if old_epoch == redis.call('HGET', meta, 'epoch') and redis.call('XDEL', stream, old_offset .. '-0') == 1 then
    redis.call('ZADD', gone, old_offset, old_offset)
  end
  data = ARGV[2]
  epoch, offset = append(stream, meta, gone, data, '', size, ttl, ARGV[6])
  redis.call('SET', withdrawn, epoch .. '\n' .. offset, 'EX', ttl)
  if not published then redis.call('SET', once, epoch .. '\n' .. offset, 'EX', ttl) end
  -- With every entry withdrawn the history spans twice its size; what is noted below that can't be reached any more.
  redis.call('ZREMRANGEBYSCORE', gone, '-inf', string.format('%.0f', tonumber(offset) - 2 * size))
end
tell(nodes, ARGV[5], ARGV[7], frame(epoch, offset, channel, data))
return 1
