-- What the scripts of a channel share: these lines stand before each of them.

-- Begins an epoch. Offsets will be used a second time, so nothing that was kept under them may be believed any more.
local function begin_epoch(stream, meta, gone, epoch)
  redis.call('DEL', stream, gone)
  redis.call('HSET', meta, 'epoch', epoch, 'offset', 0)
  return epoch, '0'
end

-- Tells the nodes that have a subscriber. One that nobody hears for at the store has died, or has lost its bus: then it
-- says anew that it listens, and catches up.
local function tell(nodes, dead_before, bus, frame)
  redis.call('ZREMRANGEBYSCORE', nodes, '-inf', '(' .. dead_before)
  for _, node in ipairs(redis.call('ZRANGE', nodes, 0, -1)) do
    if redis.call('PUBLISH', bus .. node, frame) == 0 then redis.call('ZREM', nodes, node) end
  end
end

-- What the bus carries. The key and the note, where there are any, follow the channel's name after unit separators.
local function frame(epoch, offset, channel, data, key, note)
  if note and note ~= '' then channel = channel .. '\31' .. key .. '\31' .. note
  elseif key and key ~= '' then channel = channel .. '\31' .. key end
  return epoch .. '\n' .. offset .. '\n' .. channel .. '\n' .. data
end

-- Appends a publication; its epoch and offset.
local function append(stream, meta, gone, data, key, size, ttl, fresh_epoch, note)
  local epoch = redis.call('HGET', meta, 'epoch') or begin_epoch(stream, meta, gone, fresh_epoch)
  local offset = string.format('%.0f', redis.call('HINCRBY', meta, 'offset', 1))
  local add = {'XADD', stream, 'MAXLEN', size, offset .. '-0', 'd', data}
  if key ~= '' or note then add[8], add[9] = 'k', key end
  if note then add[10], add[11] = 'n', note end
  redis.call(unpack(add))
  redis.call('EXPIRE', stream, ttl)
  redis.call('EXPIRE', gone, ttl)
  redis.call('EXPIRE', meta, 2 * ttl)
  return epoch, offset
end

-- Entries as one list: offset, data, key and note of each.
local function flat(entries)
  local list = {}
  for _, entry in ipairs(entries) do
    list[#list + 1] = string.match(entry[1], '^%d+')
    list[#list + 1] = entry[2][2]
    list[#list + 1] = entry[2][4] or ''
    list[#list + 1] = entry[2][6] or ''
  end
  return list
end

-- The entries after an offset; nil if any is missing that was not withdrawn.
local function after(stream, gone, offset, top)
  if offset > top then return nil end
  if offset == top then return {} end
  local first = string.format('%.0f', offset + 1)
  local entries = redis.call('XRANGE', stream, first .. '-0', '+')
  if #entries ~= top - offset and #entries + redis.call('ZCOUNT', gone, first, top) ~= top - offset then return nil end
  return entries
end
